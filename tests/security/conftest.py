"""Fixtures for several entry points."""

from pathlib import Path

import pytest

from asl_triton.presets import PRESETS
from asl_triton_export.checkpoint import load_checkpoint
from tests.exports import export_shared
from tests.networks import GLOSSES, save_checkpoint


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with one small model, `small`."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = load_checkpoint(save_checkpoint(folder / "small.pt"))
    export_shared(tmp_path_factory, checkpoint, GLOSSES, PRESETS["wlasl"], folder / "served", "small")
    return folder / "served"
