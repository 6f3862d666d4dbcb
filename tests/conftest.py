"""What tests of several packages share."""

import runpy
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.paths import ROOT, SHARED

MARKERS = {
    "tests/live": "live",
    "tests/browser": "browser",
    "tests/export": "slow",
    "tests/demo": "slow",
    "tests/deploy": "slow",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder: what needs a real Triton, a browser or torch. Others are marked where they stand."""
    for item in items:
        folder = "/".join(item.path.relative_to(ROOT).parts[:2])
        if folder in MARKERS:
            item.add_marker(MARKERS[folder])


@pytest.fixture(scope="session", autouse=True)
def sigint() -> Iterator[None]:
    """Ctrl-C as in a terminal, here and in what tests start: shells have what they run in the background ignore it."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The reference checkpoint and answers, and the real clips: beside the checkout, where it has them."""
    if not SHARED.is_dir():
        pytest.skip("the reference answers are not here: there is no folder `shared` beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def expected(shared_folder: Path) -> Mapping[str, np.ndarray]:
    """What the original network answers: `expected.npz`."""
    with np.load(shared_folder / "reference" / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def reference(shared_folder: Path) -> dict[str, Any]:
    """`make_checkpoint.py` of the reference: `build_state_dict` and `test_frames`."""
    return runpy.run_path(str(shared_folder / "reference" / "make_checkpoint.py"))


@pytest.fixture(scope="session")
def reference_checkpoint(reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint, 2000 classes, in WLASL's own format."""
    import torch

    path = tmp_path_factory.mktemp("reference") / "reference.pt"
    torch.save(reference["build_state_dict"](), path)
    return path


@pytest.fixture(scope="session")
def noise(reference: dict[str, Any]) -> Callable[[int], np.ndarray]:
    """The reference's test frames of a length: uint8 RGB (T, 224, 224, 3)."""
    return lambda num_frames: reference["test_frames"](num_frames, seed=num_frames)
