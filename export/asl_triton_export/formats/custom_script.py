"""Any other network, as a TorchScript file with the documented signature, which is checked before it is served.

A TorchScript file is code that PyTorch runs, so it is checked in a confined process and never loaded in this one.

The signature is that of `torchscript.ServedI3D`: `forward(frames: uint8 (N, T, 224, 224, 3) RGB) -> (logits (N, C),
step_logits (N, S, C), features (N, F))`, all float32, for every N and T, with S = max(ceil(T / 8) - 1, 1).
"""

import json
import math
import re
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asl_triton.errors import CheckpointError, LabelsError
from asl_triton.files import read_at_most, sha256
from asl_triton.models.golden import choose_golden_frames, render_golden
from asl_triton.presets import Preset
from asl_triton_export.formats.confinement import run_confined
from asl_triton_export.formats.script_file import BoundedNetwork, save_script

NAMES = ("logits", "step_logits", "features")
PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
FRAMES_PER_STEP = 8
MAX_ROW_DIFFERENCE = 0.05  # between a clip by itself and in a batch, as a share of the spread of its logits
CHECK_TIMEOUT_S = 900.0
MAX_RESULT_BYTES = 16 * 2**20
RESULT, SAVED = "result.json", "model.pt"  # files that the confined process writes


@dataclass(frozen=True)
class CustomScript:
    """A TorchScript network with the right signature, and its logits (C,) for the golden clip.

    `path` is the network as PyTorch saved it again, ready for inference. `sha256` is that of the original file.
    """

    path: Path
    sha256: str
    num_features: int
    precision: str
    golden_logits: npt.NDArray[np.float32]


@contextmanager
def load_script(path: Path, num_labels: int, preset: Preset) -> Iterator[CustomScript]:
    """Check a TorchScript file in a confined process, and yield the result. Its file is deleted after the block.

    Raises:
        CheckpointError: it is not TorchScript, or it violates the signature or its confinement; the message says how.
        LabelsError: its number of classes differs from the number of labels.
    """
    if not path.is_file():
        raise CheckpointError(f"cannot find TorchScript file {path}: write one with torch.jit.script(net.eval()).save")
    checksum = sha256(path)
    with tempfile.TemporaryDirectory(prefix="asl-triton-check-") as name:
        scratch = Path(name).resolve()
        arguments = [str(path.absolute()), str(path), num_labels, preset.to_json(), str(scratch)]
        try:
            done = run_confined(f"{__name__}:check_and_save", arguments, scratch, [path], CHECK_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            raise CheckpointError(f"{path} takes more than {CHECK_TIMEOUT_S:g} s for four clips") from exc
        result = _read_result(scratch / RESULT)
        if "error" in result:
            kind = LabelsError if result.get("kind") == LabelsError.__name__ else CheckpointError
            raise kind(str(result["error"]))
        try:
            logits = np.array(result["golden_logits"], np.float32)
            script = CustomScript(
                scratch / SAVED, checksum, int(result["num_features"]), str(result["precision"]), logits
            )
        except (LookupError, TypeError, ValueError) as exc:
            how = f"killed by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else "it exited early"
            raise CheckpointError(
                f"{path} ended the process that checked it ({how}): it does more than compute, or is too large"
            ) from exc
        if logits.shape != (num_labels,) or not script.path.is_file():
            raise CheckpointError(f"{path} falsified its own check: it does more than compute")
        yield script


def _read_result(path: Path) -> dict[str, Any]:
    """Read the result of the confined process. Untrusted code may have written it, so the caller checks its values."""
    try:
        content = read_at_most(path, MAX_RESULT_BYTES)
        result = {} if content is None or path.is_symlink() else json.loads(content)
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def check_and_save(file: str, name: str, num_labels: int, preset: str, scratch: str) -> None:
    """Run `check_script` in a confined process: write `RESULT` and, if the check passes, `SAVED` into `scratch`."""
    try:
        prepared = Preset.from_json(preset)
        module, result = check_script(Path(file), name, num_labels, prepared)
        try:
            save_script(BoundedNetwork(module, prepared), Path(scratch) / SAVED)
        except RuntimeError as exc:  # TorchScript cannot infer the type of its result
            raise CheckpointError(
                f"{name} does not declare its return type: use tuple[torch.Tensor, torch.Tensor, torch.Tensor]"
            ) from exc
    except (CheckpointError, LabelsError) as exc:
        result = {"error": str(exc), "kind": type(exc).__name__}
    (Path(scratch) / RESULT).write_text(json.dumps(result))


def check_script(file: Path, path: str, num_labels: int, preset: Preset) -> tuple[Any, dict[str, Any]]:
    """Run a TorchScript file on the golden clip, by itself and in a batch, and on a clip of another length.

    Returns the network and the content of `RESULT`. Messages call the file `path`.

    Raises:
        CheckpointError: it is not TorchScript, or it violates the signature; the message says how.
        LabelsError: its number of classes differs from the number of labels.
    """
    module = _read(file, path)
    num_frames = choose_golden_frames(preset)
    golden = torch.from_numpy(render_golden(num_frames))[None]
    logits, _, features = run_script(module, golden, path)
    if logits.shape[1] != num_labels:
        raise LabelsError(
            f"{path} has {logits.shape[1]} classes, but there are {num_labels} labels: use the list that it was "
            "trained with"
        )
    spread = float(logits.max() - logits.min())
    together = run_script(module, torch.cat([golden, golden.flip(1)]), path)[0]
    difference = float((together[0] - logits[0]).abs().max())
    if not difference <= MAX_ROW_DIFFERENCE * max(spread, 1.0):
        raise CheckpointError(
            f"{path} gives different logits for the same clip by itself and in a batch (by {difference:.3g}): call "
            "eval() before scripting it, and keep the clips of a batch independent of each other"
        )
    other = preset.min_frames if preset.min_frames != num_frames else min(num_frames + 1, preset.max_frames)
    run_script(module, torch.from_numpy(render_golden(other))[None], path)
    parameter = next(iter(module.parameters()), None)
    return module, {
        "num_features": features.shape[1],
        "precision": "fp32" if parameter is None else PRECISIONS.get(parameter.dtype, "fp32"),
        "golden_logits": logits[0].tolist(),
    }


def run_script(module: Any, frames: Tensor, path: str) -> tuple[Tensor, Tensor, Tensor]:
    """Run a network on clips (N, T, 224, 224, 3).

    Raises:
        CheckpointError: it fails, or the number, shapes or types of its outputs differ from the signature.
    """
    count, length = frames.shape[:2]
    asked = f"{path}, with input uint8 {list(frames.shape)},"
    try:
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            answers = module(frames)
    except Exception as exc:  # whatever the network's own code raises
        lines = [line for line in str(exc).splitlines() if line.strip()] or [type(exc).__name__]
        reason = re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1].strip())
        raise CheckpointError(f"{asked} fails ({reason}): it must accept any number of clips of any length") from exc
    if not isinstance(answers, tuple) or len(answers) != 3 or not all(isinstance(a, Tensor) for a in answers):
        kind = f"{len(answers)} values" if isinstance(answers, tuple | list | dict) else f"a {type(answers).__name__}"
        raise CheckpointError(f"{asked} returns {kind} instead of the tuple ({', '.join(NAMES)})")
    num_classes = answers[0].shape[-1] if answers[0].ndim else 0
    num_features = answers[2].shape[-1] if answers[2].ndim else 0
    steps = max(math.ceil(length / FRAMES_PER_STEP) - 1, 1)
    shapes = ([count, num_classes], [count, steps, num_classes], [count, num_features])
    for name, answer, shape in zip(NAMES, answers, shapes, strict=True):
        if answer.dtype != torch.float32 or list(answer.shape) != shape or 0 in shape:
            raise CheckpointError(
                f"{asked} returns {name} as {str(answer.dtype).removeprefix('torch.')} {list(answer.shape)} instead of "
                f"float32 {shape}" + (" (one step per 8 frames, minus one)" if name == "step_logits" else "")
            )
        if not bool(torch.isfinite(answer).all()):
            raise CheckpointError(f"{asked} returns {name} that are not finite: check its weights and arithmetic")
    return answers


def _read(file: Path, path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about its own file formats
            return torch.jit.load(file, map_location="cpu").eval()
    except Exception as exc:  # other files make the zip and code readers raise anything
        raise CheckpointError(
            f"{path} is not a TorchScript file, or is damaged: write it with torch.jit.script(net.eval()).save(...). "
            "If it is an I3D checkpoint, leave out --torchscript"
        ) from exc
