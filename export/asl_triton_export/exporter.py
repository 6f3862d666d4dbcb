"""Writes the model folder that Triton serves: the network, both configs, labels and the golden answer."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from asl_triton.errors import AslTritonError, CheckpointError, DictionaryError
from asl_triton.files import atomic_folder, find_scratch_folder
from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton.models.golden import GoldenAnswer, choose_golden_frames, render_golden
from asl_triton.presets import Preset
from asl_triton.teaching.dictionary import SignDictionary, TaughtModel
from asl_triton_export.checkpoint import CLASSIFIER_KEY, Checkpoint
from asl_triton_export.formats import Forward, ModelFormat, fastest_precision, get_format
from asl_triton_export.formats.custom_script import CustomScript
from asl_triton_export.i3d import I3D, normalize, pool_steps
from asl_triton_export.quantization.calibration import read_calibration
from asl_triton_export.quantization.report import QuantizationCost, measure_cost
from asl_triton_export.triton_config import Format, ServedNetwork, build_config, write_config

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
Input = Literal["uint8", "fp32"]
# How much the logits of the exported and the trained network may differ, as a share of the spread of the logits.
# With the reference checkpoint, rounding through 57 layers gives 1e-5, 0.5 %, 3 % and 5 %.
MAX_DEVIATION = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 0.25}

PYTHON_BACKENDS = Path(__file__).parent / "python_backends"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote, and how the exported network compares with the trained one on the golden clip."""

    folder: Path
    precision: str  # what "auto" chose
    max_difference: float  # logits
    spread: float  # logits, between the trained network's smallest and largest
    same_best: bool
    cost: QuantizationCost | None = None  # of int8, on clips that were not used to quantize


def export_model(
    checkpoint: Checkpoint,
    labels: tuple[str, ...],
    preset: Preset,
    repository: Path,
    name: str,
    *,
    card: ModelCard = EMPTY_CARD,
    precision: Precision = "fp32",
    input_type: Input = "uint8",
    served_as: Format = "torchscript",
    calibrate: Path | None = None,
    dictionary: SignDictionary | None = None,
    instances: int = 1,
    version: int = 1,
    force: bool = False,
) -> ExportReport:
    """Write `repository/name` and return a report.

    The model is written to a temporary folder, compared with the trained network, and then renamed.

    `calibrate` is a folder of clips: some are used to quantize to int8, others to measure what that costs. The signs of
    a `dictionary` become glosses of the model and come before its own.

    Raises:
        AslTritonError: the name is invalid; the folder exists and `force` is not given, or it cannot be written; the
            format does not support the precision, or its packages are not installed.
        CheckpointError: the network does not take RGB, or the exported network's output differs from the trained one's.
        DictionaryError: the signs were taught with another model.
        VideoError: no clip of `calibrate` can be read.
    """
    check_name(name)
    if checkpoint.channels != 3:
        raise CheckpointError(
            f"{checkpoint.path} takes {checkpoint.channels} input channels (optical flow?): only RGB is supported"
        )
    if precision == "auto":
        precision = fastest_precision(served_as)
    model_format = get_format(served_as, precision)
    if (precision == "int8") != (calibrate is not None):
        raise AslTritonError(
            "--precision int8 needs clips to quantize with: name a folder of your clips with --calibrate"
            if calibrate is None
            else f"--calibrate is for --precision int8: {precision} does not need clips"
        )
    if dictionary is not None:
        check_dictionary(dictionary, TaughtModel(checkpoint.sha256, precision, preset.to_json()), served_as)
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
        card=card,
    )
    net = checkpoint.network()
    cost = None
    with create_model_folder(repository / name, force) as folder:
        version_folder = folder / str(version)
        version_folder.mkdir()
        if calibration is None:
            model_format.save(net, network, version_folder)
        else:
            from asl_triton_export.quantization.nncf import save_quantized  # imported late: NNCF takes seconds

            save_quantized(net, network, version_folder, calibration.clips)
        forward = model_format.open(version_folder, precision)
        answer = compare(net, network, forward)
        if calibration is not None:
            from asl_triton_export.formats.openvino import compile_float32

            cost = measure_cost(compile_float32(net, network), forward, network, calibration, labels)
        report = ExportReport(
            repository / name,
            precision,
            max_difference=float(np.abs(answer.served_logits - answer.logits).max()),
            spread=float(np.ptp(answer.logits)),
            same_best=bool(answer.served_logits.argmax() == answer.logits.argmax()),
            cost=cost,
        )
        if dictionary is not None:
            from asl_triton_export.formats.taught import add_taught_signs

            network, labels = add_taught_signs(version_folder, dictionary, network, labels)
            pixels = render_golden(answer.num_frames)
            taught = model_format.open(version_folder, precision)(network.tensor(pixels))
            tolerance = answer.tolerance * max(float(np.ptp(taught)) / max(report.spread, 1.0), 1.0)
            answer = GoldenAnswer(taught, taught, answer.num_frames, tolerance)
        write_model_files(folder, version, network, model_format, labels, answer)
    return report


def check_dictionary(dictionary: SignDictionary, model: TaughtModel, served_as: Format) -> None:
    """Check that a dictionary's signs can be added to an export.

    Raises:
        DictionaryError: they were taught with another model. AslTritonError: the format does not support them.
    """
    if served_as != "torchscript":
        raise AslTritonError(f"--dictionary is for --format torchscript: {served_as} does not support taught signs")
    dictionary.classifier()
    if difference := dictionary.model.describe_difference(model):
        raise DictionaryError(
            f"the dictionary was taught with {difference} than this export has: export with the same options as the "
            "model that it was taught with, or teach the clips again"
        )


def export_script(
    script: CustomScript,
    labels: tuple[str, ...],
    preset: Preset,
    repository: Path,
    name: str,
    *,
    card: ModelCard = EMPTY_CARD,
    instances: int = 1,
    version: int = 1,
    force: bool = False,
) -> Path:
    """Write `repository/name` for a network that is already TorchScript, and return that folder.

    Raises:
        AslTritonError: the name is invalid; the folder exists and `force` is not given, or it cannot be written.
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
        card=card,
    )
    with create_model_folder(repository / name, force) as folder:
        (folder / str(version)).mkdir()
        shutil.copyfile(script.path, folder / str(version) / "model.pt")
        answer = GoldenAnswer(logits, logits, choose_golden_frames(preset), tolerance)
        write_model_files(folder, version, network, get_format("torchscript"), labels, answer)
    return repository / name


def choose_name(path: Path) -> str:
    """Derive a model name from a checkpoint's file name: characters that a name may not have become '_'."""
    stem = path.name.split(".")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem).lstrip("-_") or "model"


def check_name(name: str) -> None:
    """Check that Triton and file systems accept a model name.

    Raises:
        AslTritonError: they do not.
    """
    if not MODEL_NAME.fullmatch(name):
        raise AslTritonError(
            f"{name!r} is not a valid model name: use letters, digits, '_', '-' and '.', and start with a letter or "
            "digit"
        )


def write_model_files(
    folder: Path,
    version: int,
    network: ServedNetwork,
    model_format: ModelFormat,
    labels: tuple[str, ...],
    answer: GoldenAnswer,
) -> None:
    """Write everything in a model folder except the network."""
    answer.save(folder / "golden.npz")
    (folder / "labels.txt").write_text("".join(f"{gloss}\n" for gloss in labels), encoding="utf-8")
    shutil.copyfile(PYTHON_BACKENDS / model_format.wheel_model, folder / str(version) / "model.py")
    write_config(build_config(network, network.container_backend), folder / "config.pbtxt")
    write_config(build_config(network, "python"), folder / "configs" / "wheel.pbtxt")
    if network.container_backend == "pytorch":
        write_config(build_config(network, "pytorch", on_gpus=False), folder / "configs" / "cpu.pbtxt")


def compare(net: I3D, network: ServedNetwork, exported: Forward) -> GoldenAnswer:
    """Run the trained network and the exported one on the golden clip.

    Raises:
        CheckpointError: their logits differ by more than rounding explains.
    """
    pixels = render_golden(choose_golden_frames(network.preset))
    with torch.inference_mode():
        output = net(normalize(torch.from_numpy(pixels)[None], network.preset))
        trained = pool_steps(net, output.step_logits, output.features, network.preset)[0].numpy()
    answer = exported(network.tensor(pixels))
    difference = float(np.abs(answer - trained).max())
    spread = float(np.ptp(trained))
    if not difference <= MAX_DEVIATION[network.precision] * max(spread, 1.0):
        raise CheckpointError(
            f"the exported network's logits differ from the trained one's by {difference:.3g}, and span {spread:.3g}: "
            "nothing was written. Try --precision fp32"
        )
    return GoldenAnswer(trained, answer, len(pixels), tolerance=max(2 * difference, 1e-3 * max(spread, 1.0)))


@contextmanager
def create_model_folder(target: Path, force: bool) -> Iterator[Path]:
    """Yield a folder to fill. It becomes `target` at the end of the block, or is deleted if the block raises.

    Raises:
        AslTritonError: `target` exists and `force` is not given, or it cannot be written.
    """
    if target.exists() and not force:
        raise AslTritonError(f"{target} already exists: replace it with --force, or choose another --name")
    try:
        # Triton takes every folder in a repository for a model, even hidden ones, and does not start if one has no
        # config. So the temporary folder is outside the repository.
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target, find_scratch_folder(target.parent)) as folder:
            yield folder
    except OSError as exc:
        raise AslTritonError(f"cannot write {target}: {exc.strerror or exc}") from exc
