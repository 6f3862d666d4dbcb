"""A disk that can be full."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

Shrink = Callable[[int], AbstractContextManager[None]]
DISK_BYTES = 256 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Shrink]]:
    """A folder, and `with shrink(n)`: about `n` more bytes fit into it, in the block.

    A file system of its own where this user may mount one, else a limit on the size of each file.
    """
    if sys.platform == "win32":
        pytest.skip("Windows has no small disk to mount and no limit on the size of files")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", folder]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        yield folder, limited
        return

    @contextmanager
    def filled(free_bytes: int) -> Iterator[None]:
        stuffing = folder / "stuffing"
        status = os.statvfs(folder)
        stuffing.write_bytes(bytes(status.f_bavail * status.f_frsize - free_bytes))
        yield
        stuffing.unlink()

    try:
        yield folder, filled
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def limited(free_bytes: int) -> Iterator[None]:
    """No file grows beyond so many bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
