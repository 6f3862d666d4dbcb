"""Fixtures shared by the tests of several packages, and the markers of each folder's tests."""

import os
import runpy
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.paths import SHARED

TESTS = Path(__file__).parent

MARKERS = {
    "live": (  # start a real Triton
        "live",
        "deploy/test_images.py",
        "deploy/test_local.py",
        "deploy/test_model_layout.py",
        "deploy/test_production.py",
        "deploy/test_production_start.py",
        "deploy/test_prometheus.py",
        "deploy/test_rolling.py",
        "deploy/test_serve.py",
        "deploy/test_wheel.py",
        "security/test_production.py",
        "security/test_service.py",
    ),
    "browser": ("browser",),
    "slow": (  # train, quantize, install images, break networks, hang or start many decoders, or import Gradio
        "client/decoding",
        "client/triton_backend/test_service.py",
        "demo/test_checkpoint.py",
        "deploy/test_images.py",
        "export/finetune",
        "export/formats/test_openvino.py",
        "export/quantization",
        "export/test_gpu_benchmark.py",
        "live/faults",
        "security",
        "ui/test_ui_command.py",
    ),
}
# Groups of files that `make test` runs in one process, because they share a server. The slowest groups start first, so
# that none is still running when the others have ended. Every other file is a group by itself.
GROUPS = (
    ("browser",),
    (
        "live/test_recognize_sign.py",
        "live/test_recognize_sign_stream.py",
        "live/test_damaged_videos.py",
        "live/test_upload.py",
        "live/test_real_files.py",
    ),
    ("live/test_examples.py", "live/test_reference.py"),
    (
        "live/test_commands.py",
        "live/test_bench.py",
        "live/test_evaluate.py",
        "live/test_readme.py",
        "live/test_shared_memory.py",
    ),
    ("live/test_cluster.py",),
    ("live/faults",),
    ("deploy/test_images.py",),
    ("export/test_parity.py",),
    ("live/test_watch.py", "live/test_timeline.py"),
    ("export/finetune",),
    ("live/test_openvino.py",),
)
# `make setup-light` installs none of these modules, so the tests that need them are skipped. CI has them all.
OPTIONAL_MODULES = {
    "torch": (
        "demo",
        "deploy",
        "export",
        "live",
        "security/test_cli.py",
        "security/test_document.py",
        "security/test_production.py",
        "security/test_service.py",
    ),
    "playwright": ("browser",),
    "gradio": (
        "security/test_page.py",
        "ui/test_request_queue.py",
        "ui/test_signer_box.py",
        "ui/test_taught_signs.py",
        "ui/test_teach_tab.py",
        "ui/test_ui_command.py",
        "ui/test_uploads.py",
    ),
    "ray": ("client/cli/test_ray_options.py",),
    "s3fs": ("client/batch/test_ray_storage.py",),
}


def is_in(path: Path, places: Sequence[str]) -> bool:
    """Whether a path is one of these files, or in one of these folders, of `tests`."""
    return any(path.is_relative_to(TESTS / place) for place in places)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test with the markers of its folder."""
    for marker, places in MARKERS.items():
        if is_in(item.path, places):
            item.add_marker(marker)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest groups first."""
    items.sort(key=lambda item: rank(item.path)[0])


class GroupScheduling(LoadScopeScheduling):
    """Runs all tests of a group in one process (`--dist loadscope`)."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return rank(TESTS.parent / file)[1]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Distribute groups if pytest-xdist distributes by scope."""
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadscope" else None


@cache
def rank(path: Path) -> tuple[int, str]:
    """A file's place in the order, and the name of its group."""
    for number, places in enumerate(GROUPS):
        if is_in(path, places):
            return number, places[0]
    return len(GROUPS), path.relative_to(TESTS).as_posix()


@cache
def find_missing() -> list[str]:
    """List the optional modules that are not installed."""
    return [] if os.environ.get("CI") else [module for module in OPTIONAL_MODULES if find_spec(module) is None]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skip tests that cannot be imported or run after `make setup-light`."""
    return True if any(is_in(collection_path, OPTIONAL_MODULES[module]) for module in find_missing()) else None


def pytest_report_header() -> list[str]:
    """List the skipped tests."""
    return [
        f"{module} is not installed (`make setup` installs it), so these are skipped: "
        f"{', '.join(OPTIONAL_MODULES[module])}"
        for module in find_missing()
    ]


@pytest.fixture(scope="session", autouse=True)
def sigint() -> Iterator[None]:
    """Handle Ctrl-C as in a terminal, here and in child processes. Shells make background commands ignore it."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder `shared` next to the checkout, with the reference checkpoint, its answers and the real clips."""
    if not SHARED.is_dir():
        pytest.skip("this test needs the reference answers, but there is no folder `shared` next to the checkout")
    return SHARED


@pytest.fixture(scope="session")
def expected(shared_folder: Path) -> Mapping[str, np.ndarray]:
    """The answers of the original network, from `expected.npz`."""
    with np.load(shared_folder / "reference" / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def reference(shared_folder: Path) -> dict[str, Any]:
    """`build_state_dict` and `test_frames` from the reference's `make_checkpoint.py`."""
    return runpy.run_path(str(shared_folder / "reference" / "make_checkpoint.py"))


@pytest.fixture(scope="session")
def reference_checkpoint(reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint (2000 classes) in WLASL's own format."""
    import torch

    path = tmp_path_factory.mktemp("reference") / "reference.pt"
    torch.save(reference["build_state_dict"](), path)
    return path


@pytest.fixture(scope="session")
def noise(reference: dict[str, Any]) -> Callable[[int], np.ndarray]:
    """Make the reference's test frames for a given length: uint8 RGB (T, 224, 224, 3)."""
    return lambda num_frames: reference["test_frames"](num_frames, seed=num_frames)
