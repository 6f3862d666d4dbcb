"""Any other network, as a TorchScript file with the documented signature, which is checked before it is served.

`forward(frames: uint8 (N, T, 224, 224, 3) RGB) -> (logits (N, C), step_logits (N, S, C), features (N, F))`, all
float32, for every N and T, with S = max(ceil(T / 8) - 1, 1): as `torchscript.ServedI3D`.
"""

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asl_triton.errors import CheckpointError, LabelsError
from asl_triton.files import sha256
from asl_triton.models.golden import GOLDEN_FRAMES, render_golden
from asl_triton.presets import Preset

NAMES = ("logits", "step_logits", "features")
PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
FRAMES_PER_STEP = 8
MAX_ROW_DIFFERENCE = 0.05  # between a clip alone and in a batch, as a share of the spread of its logits


@dataclass(frozen=True)
class CustomScript:
    """A TorchScript network with the right signature, and its logits (C,) for the golden clip."""

    path: Path
    sha256: str
    module: Any  # torch.jit.ScriptModule, which has no types
    num_features: int
    precision: str
    golden_logits: npt.NDArray[np.float32]


def load_script(path: Path, num_labels: int, preset: Preset) -> CustomScript:
    """Load a TorchScript file and run it on the golden clip, alone and in a batch, and on a clip of another length.

    Raises:
        CheckpointError: not TorchScript, or it breaks the signature; the message says how.
        LabelsError: it has another number of classes than there are labels.
    """
    module = _read(path)
    golden = torch.from_numpy(render_golden())[None]
    logits, _, features = run_script(module, golden, path)
    if logits.shape[1] != num_labels:
        raise LabelsError(
            f"{path} has {logits.shape[1]} classes, and there are {num_labels} labels: give the list that it was "
            "trained with"
        )
    spread = float(logits.max() - logits.min())
    together = run_script(module, torch.cat([golden, golden.flip(1)]), path)[0]
    difference = float((together[0] - logits[0]).abs().max())
    if not difference <= MAX_ROW_DIFFERENCE * max(spread, 1.0):
        raise CheckpointError(
            f"{path} answers the same clip differently alone and beside another (logits by {difference:.3g}): call "
            "eval() before scripting it, and let no clip of a batch see the others"
        )
    least = preset.min_frames
    run_script(module, torch.from_numpy(render_golden(least if least != GOLDEN_FRAMES else least + 1))[None], path)
    parameter = next(iter(module.parameters()), None)
    return CustomScript(
        path,
        sha256(path),
        module,
        num_features=features.shape[1],
        precision="fp32" if parameter is None else PRECISIONS.get(parameter.dtype, "fp32"),
        golden_logits=logits[0].numpy(),
    )


def run_script(module: Any, frames: Tensor, path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Run a network on clips (N, T, 224, 224, 3).

    Raises:
        CheckpointError: it fails, or its outputs differ in number, shape or type from the signature.
    """
    count, length = frames.shape[:2]
    asked = f"{path}, given uint8 {list(frames.shape)},"
    try:
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            answers = module(frames)
    except Exception as exc:  # whatever the network's own code raises
        lines = [line for line in str(exc).splitlines() if line.strip()] or [type(exc).__name__]
        reason = re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1].strip())
        raise CheckpointError(f"{asked} fails ({reason}): it must take clips of any number and length") from exc
    if not isinstance(answers, tuple) or len(answers) != 3 or not all(isinstance(a, Tensor) for a in answers):
        kind = f"{len(answers)} values" if isinstance(answers, tuple | list | dict) else f"a {type(answers).__name__}"
        raise CheckpointError(f"{asked} answers with {kind}, not with the tuple ({', '.join(NAMES)})")
    num_classes = answers[0].shape[-1] if answers[0].ndim else 0
    num_features = answers[2].shape[-1] if answers[2].ndim else 0
    steps = max(math.ceil(length / FRAMES_PER_STEP) - 1, 1)
    shapes = ([count, num_classes], [count, steps, num_classes], [count, num_features])
    for name, answer, shape in zip(NAMES, answers, shapes, strict=True):
        if answer.dtype != torch.float32 or list(answer.shape) != shape or 0 in shape:
            raise CheckpointError(
                f"{asked} answers {name} as {str(answer.dtype).removeprefix('torch.')} {list(answer.shape)}, not as "
                f"float32 {shape}" + (" (one step for 8 frames, less one)" if name == "step_logits" else "")
            )
        if not bool(torch.isfinite(answer).all()):
            raise CheckpointError(f"{asked} answers {name} that are not finite: its weights or its arithmetic broke")
    return answers


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"there is no TorchScript file {path}: write one with torch.jit.script(net.eval()).save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch speaks of its own file formats
            return torch.jit.load(path, map_location="cpu").eval()
    except Exception as exc:  # what a file of any other kind makes the readers of zips and code raise
        raise CheckpointError(
            f"{path} is no TorchScript, or a broken one: write it with torch.jit.script(net.eval()).save(...). "
            "A checkpoint of I3D is given without --torchscript"
        ) from exc
