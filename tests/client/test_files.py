"""One run a folder: where it cannot be had, a sentence."""

import errno
import fcntl
import os
from pathlib import Path

import portalocker
import pytest

from asl_triton.errors import AslTritonError
from asl_triton.files import FolderLock
from tests.client.conftest import Shrink, limited


def test_lock_says_who_holds_it_and_is_gone_afterwards(tmp_path: Path) -> None:
    with FolderLock(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(AslTritonError, match=f"another run is writing to .*: process {os.getpid()} on "):
            FolderLock(tmp_path / ".lock").__enter__()
    assert os.listdir(tmp_path) == []


def test_lock_of_a_run_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on another, since long ago\nand more")
    with FolderLock(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text().count("\n") == 1
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_full_disk_is_a_sentence(disk: tuple[Path, Shrink]) -> None:
    folder, shrink = disk
    if shrink is limited:
        pytest.skip("a limit on the size of files lets small ones be: only root may mount a small disk")
    with (
        shrink(0),
        pytest.raises(AslTritonError, match=r"No space left on device\. Make room, or choose another folder"),
    ):
        FolderLock(folder / ".lock").__enter__()
    with FolderLock(folder / ".lock"):
        pass


def test_file_system_without_locks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(portalocker.portalocker, "LOCKER", flock)
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(AslTritonError, match=r"cannot lock .*: .*No locks available.* another file system"):
        FolderLock(tmp_path / ".lock").__enter__()
