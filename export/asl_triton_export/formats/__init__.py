"""The formats that a network can be served in: how each is written, and read back on this machine.

A format's packages are imported when it is used, because OpenVINO is an optional extra.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from asl_triton.errors import AslTritonError
from asl_triton.extras import require_extra
from asl_triton.results import Logits
from asl_triton.transport.base import Array
from asl_triton_export.i3d import I3D

if TYPE_CHECKING:  # imports tritonclient, which `make bench-gpu` does not install
    from asl_triton_export.triton_config import Format, ServedNetwork

Forward = Callable[[Array], Logits]  # from the frames of one clip, in the form of the input, to its logits (C,)

PRECISIONS: dict[Format, tuple[str, ...]] = {
    "torchscript": ("fp32", "fp16", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
}


@dataclass(frozen=True)
class ModelFormat:
    """One format. `save` writes a network into a version folder of a model, and `open` reads it back; both get the
    precision. `quantization.nncf.save_quantized` saves int8 instead of `save`."""

    wheel_model: str  # the file in `python_backends` that serves this format on Triton's Python backend
    save: Callable[[I3D, ServedNetwork, Path], None]
    open: Callable[[Path, str], Forward]


def get_format(served_as: Format, precision: str = "fp32") -> ModelFormat:
    """Return a format after checking that it supports `precision` and that its packages are installed.

    Raises:
        AslTritonError: the format does not support the precision, or its packages are not installed.
    """
    precisions = PRECISIONS[served_as]
    if precision not in precisions:
        other = next(name for name in PRECISIONS if precision in PRECISIONS[name])
        raise AslTritonError(
            f"--format {served_as} supports {', '.join(precisions)}, not {precision}: use --format {other} for that"
        )
    if served_as == "torchscript":
        from asl_triton_export.formats.torchscript import open_torchscript, save_torchscript

        return ModelFormat("torchscript_model.py", save_torchscript, open_torchscript)
    with require_extra("openvino", "--format openvino"):
        from asl_triton_export.formats.openvino import open_openvino, save_openvino

        if precision == "int8":
            importlib.import_module("nncf")
    return ModelFormat("openvino_model.py", save_openvino, open_openvino)


def fastest_precision(served_as: Format = "torchscript") -> Literal["fp32", "fp16", "bf16"]:
    """Return fp16 if there is an NVIDIA GPU, bf16 if the processor multiplies it natively, else fp32."""
    if served_as == "torchscript" and torch.cuda.is_available():
        return "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
