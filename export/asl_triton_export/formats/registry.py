"""The formats that a network is served in: how each is written, and asked again on this machine."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from asl_triton.errors import AslTritonError
from asl_triton.results import Logits
from asl_triton.transport.base import Array
from asl_triton.video.reader import Image
from asl_triton_export.formats.served_i3d import ServedI3D
from asl_triton_export.i3d import I3D
from asl_triton_export.quantization.report import Ask
from asl_triton_export.triton_config import Format, ServedNetwork

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS: dict[Format, tuple[str, ...]] = {"torchscript": tuple(DTYPES), "openvino": ("fp32", "bf16", "int8")}


@dataclass(frozen=True)
class ModelFormat:
    """One format. `save` writes a network into the version folder of its model folder, quantized with clips where its
    precision is int8: uint8 RGB (T, 224, 224, 3). `open` reads it again, to be asked on this machine."""

    wheel_model: str  # the file in `python_backends` that serves it on Triton's Python backend
    save: Callable[[I3D, ServedNetwork, Path, Sequence[Image]], None]
    open: Callable[[ServedNetwork, Path], Ask]


def get_format(served_as: Format, precision: str = "fp32") -> ModelFormat:
    """The engine of a format.

    Raises:
        AslTritonError: it has no such precision, or its packages are not installed.
    """
    precisions = PRECISIONS[served_as]
    if precision not in precisions:
        other = next(name for name in PRECISIONS if precision in PRECISIONS[name])
        raise AslTritonError(
            f"--format {served_as} is served in {', '.join(precisions)}, not in {precision}: that is for "
            f"--format {other}"
        )
    if served_as == "torchscript":
        return ModelFormat("torchscript_model.py", save_torchscript, open_torchscript)
    try:
        if precision == "int8":
            importlib.import_module("asl_triton_export.quantization.nncf")
        from asl_triton_export.formats.openvino import open_openvino, save_openvino
    except ModuleNotFoundError as exc:
        raise AslTritonError(
            f"--format openvino needs the Python module {exc.name!r}, which is not installed: "
            "pip install 'asl-triton[openvino]'"
        ) from exc
    return ModelFormat("openvino_model.py", save_openvino, open_openvino)


def save_torchscript(net: I3D, network: ServedNetwork, folder: Path, clips: Sequence[Image]) -> None:
    """Write `model.pt`."""
    normalized = network.input_type == "fp32"
    served = ServedI3D(net, network.preset, DTYPES[network.precision], normalized_input=normalized).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what Triton's backend loads
        torch.jit.script(served).save(folder / "model.pt")


def open_torchscript(network: ServedNetwork, folder: Path) -> Ask:
    """What `save_torchscript` wrote, to be asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(folder / "model.pt")

    def ask(frames: Array) -> Logits:
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            logits: Logits = module(torch.from_numpy(frames))[0][0].numpy()
        return logits

    return ask
