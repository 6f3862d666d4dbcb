"""The model folder that Triton serves: the network, both configs, labels and the golden answer, written whole."""

import contextlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from asl_triton.errors import AslTritonError, CheckpointError
from asl_triton.models.golden import GOLDEN_FRAMES, GoldenAnswer, render_golden
from asl_triton.presets import Preset
from asl_triton_export.checkpoint import CLASSIFIER_KEY, Checkpoint
from asl_triton_export.formats.custom_script import CustomScript
from asl_triton_export.formats.registry import ModelFormat, get_format
from asl_triton_export.i3d import I3D, normalize, pool_steps
from asl_triton_export.quantization.calibration import read_calibration
from asl_triton_export.quantization.report import QuantizationCost
from asl_triton_export.triton_config import Format, ServedNetwork, model_config, write_config

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
Input = Literal["uint8", "fp32"]
# How far the exported network may be from the trained one, in parts of the spread of its logits: rounding of weights
# and activations through 57 layers gives 1e-5, 0.5 %, 3 % and 5 % with the reference checkpoint.
MAX_DEVIATION = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 0.25}

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote, and how the exported network compares with the trained one on the golden clip."""

    folder: Path
    precision: str
    max_difference: float  # logits
    spread: float  # logits, from the least to the greatest of the trained network's
    same_best: bool
    cost: QuantizationCost | None = None  # of int8, on the clips that it was not quantized with


def export_model(
    checkpoint: Checkpoint,
    labels: tuple[str, ...],
    preset: Preset,
    repository: Path,
    name: str,
    *,
    precision: Precision = "fp32",
    input_type: Input = "uint8",
    served_as: Format = "torchscript",
    calibrate: Path | None = None,
    instances: int = 1,
    version: int = 1,
    force: bool = False,
) -> ExportReport:
    """Write `repository/name` whole: to a temporary sibling, compared with the trained network, then renamed.

    `calibrate` is a folder of clips: int8 is quantized with some of them, and its cost measured on others.

    Raises:
        AslTritonError: the name is not usable, the folder exists and `force` is not given, it cannot be written, the
            format has no such precision, or its packages are not installed.
        CheckpointError: not an RGB network, or the exported one answers differently from the trained one.
        VideoError: `calibrate` has no clip that can be read.
    """
    check_name(name)
    if checkpoint.channels != 3:
        raise CheckpointError(
            f"{checkpoint.path} takes {checkpoint.channels} input channels (optical flow?): only RGB is served"
        )
    if precision == "auto":
        precision = fastest_precision(served_as)
    engine = get_format(served_as, precision)
    if (precision == "int8") != (calibrate is not None):
        raise AslTritonError(
            "--precision int8 is quantized with clips of yours: name a folder of them with --calibrate"
            if calibrate is None
            else f"--calibrate is for --precision int8: {precision} needs no clips"
        )
    calibration = None if calibrate is None else read_calibration(calibrate, preset, labels)
    network = ServedNetwork(
        name=name,
        num_classes=checkpoint.num_classes,
        num_features=checkpoint.state[CLASSIFIER_KEY].shape[1],
        preset=preset,
        precision=precision,
        input_type=input_type,
        checkpoint_sha256=checkpoint.sha256,
        instances=instances,
        served_as=served_as,
    )
    net = checkpoint.network()
    with atomic_folder(repository, name, force) as folder:
        saved = folder / str(version)
        saved.mkdir()
        engine.save(net, network, saved, () if calibration is None else calibration.clips)
        answer, report = compare(net, network, engine, saved)
        if calibration is not None:
            from asl_triton_export.formats.openvino import count_operations

            report = replace(report, cost=count_operations(net, network, saved, calibration, labels))
        write_beside_model(folder, version, network, engine, labels, answer)
    return replace(report, folder=repository / name)


def export_script(
    script: CustomScript,
    labels: tuple[str, ...],
    preset: Preset,
    repository: Path,
    name: str,
    *,
    instances: int = 1,
    version: int = 1,
    force: bool = False,
) -> Path:
    """Write `repository/name` whole for a network that is TorchScript already; returns the folder.

    Raises:
        AslTritonError: the name is not usable, the folder exists and `force` is not given, or it cannot be written.
    """
    check_name(name)
    logits = script.golden_logits
    tolerance = 1e-3 * max(float(logits.max() - logits.min()), 1.0)
    network = ServedNetwork(
        name=name,
        num_classes=len(labels),
        num_features=script.num_features,
        preset=preset,
        precision=script.precision,
        input_type="uint8",
        checkpoint_sha256=script.sha256,
        instances=instances,
    )
    with atomic_folder(repository, name, force) as folder:
        (folder / str(version)).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            script.module.save(folder / str(version) / "model.pt")
        answer = GoldenAnswer(logits, logits, GOLDEN_FRAMES, tolerance)
        write_beside_model(folder, version, network, get_format("torchscript"), labels, answer)
    return repository / name


def check_name(name: str) -> None:
    """Refuse what Triton or a file system cannot call a model."""
    if not MODEL_NAME.fullmatch(name):
        raise AslTritonError(
            f"{name!r} cannot name a model: use letters, digits, '_', '-' and '.', beginning with a letter or digit"
        )


def write_beside_model(
    folder: Path,
    version: int,
    network: ServedNetwork,
    engine: ModelFormat,
    labels: tuple[str, ...],
    answer: GoldenAnswer,
) -> None:
    """Write everything of a model folder but the network."""
    answer.save(folder / "golden.npz")
    (folder / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).parent / "python_backends" / engine.wheel_model, folder / str(version) / "model.py")
    write_config(model_config(network, network.container_backend), folder / "config.pbtxt")
    write_config(model_config(network, "python"), folder / "configs" / "wheel.pbtxt")


def fastest_precision(served_as: Format = "torchscript") -> Literal["fp32", "fp16", "bf16"]:
    """fp16 where there is an NVIDIA GPU to serve with, bf16 where the processor multiplies it natively, else fp32."""
    if served_as == "torchscript" and torch.cuda.is_available():
        return "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def compare(net: I3D, network: ServedNetwork, engine: ModelFormat, saved: Path) -> tuple[GoldenAnswer, ExportReport]:
    """Ask the trained network, and the one in the version folder `saved`, for the golden clip.

    Raises:
        CheckpointError: they differ by more than rounding explains.
    """
    pixels = render_golden()
    with torch.inference_mode():
        output = net(normalize(torch.from_numpy(pixels)[None], network.preset))
        trained = pool_steps(net, output.step_logits, output.features, network.preset)[0].numpy()
    answer = engine.open(network, saved)(network.tensor(pixels))
    difference = float(np.abs(answer - trained).max())
    spread = float(trained.max() - trained.min())
    if not difference <= MAX_DEVIATION[network.precision] * max(spread, 1.0):
        raise CheckpointError(
            f"the exported network answers differently from the trained one: by {difference:.3g} where logits spread "
            f"over {spread:.3g}; nothing was written. Try --precision fp32"
        )
    tolerance = max(2 * difference, 1e-3 * max(spread, 1.0))
    report = ExportReport(saved, network.precision, difference, spread, bool(answer.argmax() == trained.argmax()))
    return GoldenAnswer(trained, answer, len(pixels), tolerance), report


@contextlib.contextmanager
def atomic_folder(repository: Path, name: str, force: bool) -> Iterator[Path]:
    """A folder to fill that becomes `repository/name` at the end of the block, or vanishes if the block raises."""
    target = repository / name
    if target.exists() and not force:
        raise AslTritonError(f"{target} exists: give --force to replace it, or another --name")
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # Outside what Triton looks at until the rename: a folder with no config of its own.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=repository) as scratch:
            folder = Path(scratch) / name
            folder.mkdir()
            yield folder
            if target.exists():
                target.rename(Path(scratch) / "replaced")
            folder.rename(target)
    except OSError as exc:
        raise AslTritonError(f"cannot write {target}: {exc.strerror or exc}") from exc
