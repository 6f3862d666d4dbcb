"""Fixtures for fault tests: the archive, the servers, and the rows of the table."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from asl_triton_deploy.local import LocalTriton
from tests.client.conftest import disk  # noqa: F401  a fixture used by these tests
from tests.live.conftest import write_clip
from tests.live.faults.archive import ALL_FORMATS, FEW, NAMES, Answers, check_results, link_clips, read_answers
from tests.live.faults.batch_run import BatchRun
from tests.live.quick_network import export_quick
from tests.local_triton import serve

Row = Callable[[str, str, str], None]


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    """Return a function that adds a row to the table: the fault, what was done, and the result."""

    def record(fault: str, done: str, result: str) -> None:
        record_property("fault", (fault, done, result))
        print(f"{fault}: {done}: {result}")

    return record


@pytest.fixture(scope="package")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 200 clips: five files under many names."""
    folder = tmp_path_factory.mktemp("archive")
    files = [write_clip(folder / f"{n}.mp4", 9 + 3 * n, (64, 64), seed=n) for n in range(5)]
    (folder / "clips").mkdir()
    for number, name in enumerate(NAMES):
        os.link(files[number % len(files)], folder / "clips" / name)
    return folder / "clips"


@pytest.fixture(scope="package")
def few(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the first hundred clips."""
    return link_clips(archive, tmp_path_factory.mktemp("few"), FEW)


@pytest.fixture(scope="package")
def white(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a white clip, which the model `late` answers slowly."""
    path = tmp_path_factory.mktemp("white") / "white.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (64, 64))
    for _ in range(30):
        writer.write(np.full((64, 64, 3), 255, np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="package")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a model, `quick`, that answers immediately."""
    folder = tmp_path_factory.mktemp("quick") / "models"
    export_quick(folder, "quick")
    return folder


@pytest.fixture(scope="package")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve `quick`, `late`, which takes four seconds for white clips, and `narrow`, which queues only two requests."""
    folder = tmp_path_factory.mktemp("server") / "models"
    shutil.copytree(repository, folder)
    export_quick(folder, "late", white_s=4, instances=2)
    export_quick(folder, "narrow", other_s=0.005, max_queue_size=2)
    with serve(folder) as triton:
        yield triton


@pytest.fixture(scope="package")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve `quick` with another checkpoint."""
    folder = tmp_path_factory.mktemp("other") / "models"
    export_quick(folder, "quick", seed=1)
    with serve(folder) as triton:
        yield triton


@pytest.fixture(scope="package")
def undisturbed(archive: Path, server: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Return the answers of an undisturbed run."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    with BatchRun(archive, output, server.address, *ALL_FORMATS) as run:
        code, printed = run.wait()
    assert code == 0, printed
    return check_results(output, read_answers(output))
