"""Exported model folders, each created once for all processes of a test run."""

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import portalocker
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from asl_triton.presets import Preset
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import Checkpoint, load_checkpoint, read_labels_for
from asl_triton_export.exporter import export_model
from tests.paths import DEMO_BUNDLE, ROOT


def make_shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Create the folder that all processes of this run share, if it does not exist yet."""
    own = factory.getbasetemp()  # with pytest-xdist, one folder per process, next to each other
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def make_once(folder: Path, key: str, make: Callable[[Path], object]) -> Path:
    """Have `make` fill a folder, unless this process or another one has done so already."""
    finished, unfinished = folder / key, folder / f"{key}.unfinished"
    with (folder / f"{key}.lock").open("w") as lock:
        portalocker.lock(lock, portalocker.LOCK_EX)
        if not finished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(finished)
    return finished


def export_shared(
    factory: pytest.TempPathFactory,
    checkpoint: Checkpoint,
    labels: tuple[str, ...],
    preset: Preset,
    repository: Path,
    name: str,
    **options: Any,
) -> Path:
    """Export like `export_model`, or copy the result of the same export if this run already has it."""
    settings = (checkpoint.sha256, labels, preset, sorted(options.items()))
    exported = make_once(
        make_shared_folder(factory),
        sha256(repr(settings).encode()).hexdigest()[:16],
        lambda folder: export_model(checkpoint, labels, preset, folder, "model", **options),
    )
    return copy_model(exported / "model", repository / name)


def copy_model(source: Path, target: Path, preset: Preset | None = None) -> Path:
    """Copy a model's folder under another name and, if given, with another preset."""
    shutil.copytree(source, target)
    for path in (target / "config.pbtxt", *(target / "configs").iterdir()):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        config.name = target.name
        if preset is not None:
            config.parameters["asl_triton.preset"].string_value = preset.to_json()
        path.write_text(text_format.MessageToString(config))
    return target


def find_local_paths(file: Path) -> list[bytes]:
    """Find this machine's paths in a file and, if it is an archive, in its members."""
    contents = [file.read_bytes()]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            contents += [archive.read(name) for name in archive.namelist()]
    places = (ROOT, Path.home(), Path(sys.prefix), Path(torch.__file__).parents[1], file.parent)
    return [bytes(place) for place in places if any(bytes(place) in content for content in contents)]


def load_demo() -> tuple[Checkpoint, tuple[str, ...]]:
    """Load the demo checkpoint and its labels."""
    bundle = open_bundle(DEMO_BUNDLE)
    checkpoint = load_checkpoint(bundle.weights)
    assert bundle.labels is not None
    return checkpoint, read_labels_for(checkpoint, bundle.labels)
