"""A disk that can fill up, and decoding that starts at once."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from asl_triton.recognizer.async_client import AsyncRecognizer

Shrink = Callable[[int], AbstractContextManager[None]]
DISK_BYTES = 256 * 1024


@pytest.fixture(autouse=True)
def decode_in_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in threads unless a test asks for processes: starting those for each recognizer takes most of the time.

    The tests in `decoding` keep the default, as do all tests with a real Triton.
    """
    if "decoding" not in request.path.parts:
        monkeypatch.setitem(AsyncRecognizer.__init__.__kwdefaults__, "decoding", "threads")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Shrink]]:
    """A folder and `shrink`. Within `with shrink(n)`, about `n` more bytes fit into the folder.

    The folder is a separate file system if this user may mount one. Otherwise the size of each file is limited.
    """
    if sys.platform == "win32":
        pytest.skip("Windows can neither mount a small disk nor limit the size of files")
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
    def fill_disk(free_bytes: int) -> Iterator[None]:
        filler = folder / "filler"
        status = os.statvfs(folder)
        filler.write_bytes(bytes(status.f_bavail * status.f_frsize - free_bytes))
        yield
        filler.unlink()

    try:
        yield folder, fill_disk
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def limited(free_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `free_bytes` within the block."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
