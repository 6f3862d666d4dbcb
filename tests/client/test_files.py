"""Folder locks and atomic folders."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import portalocker
import pytest

from asl_triton.errors import AslTritonError
from asl_triton.files import FolderLock, atomic_folder, find_scratch_folder
from tests.client.conftest import Shrink, limited


def test_lock_names_its_owner_and_is_removed_afterwards(tmp_path: Path) -> None:
    with FolderLock(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(AslTritonError, match=f"another run is writing to .*: process {os.getpid()} on "):
            FolderLock(tmp_path / ".lock").__enter__()
    assert os.listdir(tmp_path) == []


def test_lock_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on another, since long ago\nand more")
    with FolderLock(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text().count("\n") == 1
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_full_disk_is_reported(disk: tuple[Path, Shrink]) -> None:
    folder, shrink = disk
    if shrink is limited:
        pytest.skip("a limit on the file size does not affect small files, and only root may mount a small disk")
    with (
        shrink(0),
        pytest.raises(AslTritonError, match=r"No space left on device\. Make room, or choose another folder"),
    ):
        FolderLock(folder / ".lock").__enter__()
    with FolderLock(folder / ".lock"):
        pass


def test_file_system_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(portalocker.portalocker, "LOCKER", flock)
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(AslTritonError, match=r"cannot lock .*: .*No locks available.* another file system"):
        FolderLock(tmp_path / ".lock").__enter__()


KILLED = """
import os, signal, sys
from pathlib import Path
from asl_triton.files import atomic_folder

with atomic_folder(Path(sys.argv[1]), Path(sys.argv[2])) as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder of an earlier run."""
    target = tmp_path / "repository" / "model"
    target.mkdir(parents=True)
    (target / "old").touch()
    return target


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_complete_folder_replaces_the_previous_one(target: Path, tmp_path: Path) -> None:
    for scratch in (None, tmp_path):
        with atomic_folder(target, scratch) as folder:
            assert folder.parent.parent == (scratch or target.parent)
            (folder / "new").touch()
            assert list_names(target) in (["old"], ["new"])
        assert list_names(target) == ["new"]
    assert (list_names(tmp_path), list_names(target.parent)) == (["repository"], ["model"])


def test_failure_keeps_the_previous_folder(target: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, tmp_path) as folder:
        (folder / "new").touch()
        raise KeyboardInterrupt
    assert (list_names(target), list_names(tmp_path)) == (["old"], ["repository"])


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system")
def test_folder_is_copied_from_another_file_system(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        assert os.stat(scratch).st_dev != os.stat(target).st_dev
        with atomic_folder(target, Path(scratch)) as folder:
            (folder / "1").mkdir()
            (folder / "1" / "new").write_text("whole")
        assert list_names(Path(scratch)) == []
    assert (target / "1" / "new").read_text() == "whole"
    assert (list_names(target), list_names(target.parent)) == (["1"], ["model"])


def test_leftovers_of_killed_processes_are_removed_and_folders_of_running_ones_kept(
    target: Path, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, target, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".asl-triton-*")
    assert (left / "model" / "half").exists()
    with atomic_folder(target.with_name("other"), tmp_path) as running:
        assert not left.exists()
        with atomic_folder(target, tmp_path):
            assert running.is_dir()
    assert list_names(tmp_path) == ["repository"]
    assert list_names(target.parent) == ["model", "other"]


def test_folders_are_written_without_file_locks(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(portalocker.portalocker, "LOCKER", flock)
    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic_folder(target) as folder:
        (folder / "new").touch()
    assert (list_names(target), list_names(target.parent)) == (["new"], ["model"])


def test_scratch_folder_is_next_to_the_repository_or_in_the_temporary_folder(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = target.parent
    (tmp_path / "link").symlink_to(repository)
    assert find_scratch_folder(repository) == find_scratch_folder(tmp_path / "link") == tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    assert find_scratch_folder(repository) == Path(tempfile.gettempdir())
