"""Visitors' uploads: kept in a private folder of this process, deleted after a while, and never shown to others."""

import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asl_triton.errors import VideoError
from asl_triton_ui.options import MB

SWEEP_EVERY_S = 60.0


@contextmanager
def make_upload_folder(keep_s: float) -> Iterator[Path]:
    """Yield a folder that only this user can read, where Gradio keeps all of the page's files during the block.

    Files older than `keep_s` are deleted, including aborted uploads. Build the page inside the block, because Gradio
    reads its file folder when a component is made.
    """
    names = ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE")
    before = {name: os.environ.get(name) for name in names}
    over = threading.Event()
    with tempfile.TemporaryDirectory(prefix="asl-triton-ui-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        os.environ.update(dict.fromkeys(names, str(folder)))
        sweeper = threading.Thread(target=sweep_periodically, args=(folder, keep_s, over), name="sweep", daemon=True)
        sweeper.start()
        try:
            yield folder
        finally:
            over.set()
            for variable, value in before.items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value


def sweep_periodically(folder: Path, keep_s: float, over: threading.Event) -> None:
    """Sweep periodically until `over` is set."""
    while not over.wait(min(SWEEP_EVERY_S, keep_s / 2)):
        sweep(folder, keep_s)


def sweep(folder: Path, keep_s: float) -> None:
    """Delete files that arrived more than `keep_s` ago, and folders that have been empty for as long."""
    oldest = time.time() - keep_s
    for parent, folders, files in os.walk(folder, topdown=False):
        for file in files:
            with suppress(OSError):
                # The time of arrival; a file's modification time may be anything.
                if os.lstat(path := os.path.join(parent, file)).st_ctime < oldest:
                    os.unlink(path)
        for name in folders:
            with suppress(OSError):
                # A new folder may still be waiting for its file.
                if os.lstat(path := os.path.join(parent, name)).st_mtime < oldest:
                    os.rmdir(path)


def check_is_here(path: Path, keep_minutes: float) -> None:
    """Check that an upload still exists.

    Raises:
        VideoError: it was deleted.
    """
    if not path.is_file():
        raise VideoError(
            f"{path.name} is no longer here: uploads are deleted after {keep_minutes:g} minutes. Choose it again"
        )


class UploadError(Exception):
    """Raised if there is no room for an upload."""


class UploadQuota:
    """Limits the uploads in `folder`: bytes per visitor, bytes in total, and the space that must stay free.

    Uploads older than `keep_s` no longer count, because they have been deleted by then. Use it in one event loop.
    """

    def __init__(
        self, folder: Path, keep_s: float, *, max_visitor_bytes: int, max_folder_bytes: int, min_free_bytes: int
    ) -> None:
        self._folder, self._keep_s = folder, keep_s
        self._max_visitor, self._max_folder, self._min_free = max_visitor_bytes, max_folder_bytes, min_free_bytes
        self._received: Counter[tuple[str, int]] = Counter()  # bytes, by visitor and minute

    def add(self, visitor: str, num_bytes: int) -> None:
        """Count bytes that a visitor sent.

        Raises:
            UploadError: a limit is exceeded, or the disk is nearly full.
        """
        minute = int(time.monotonic() // SWEEP_EVERY_S)
        oldest = minute - int(self._keep_s // SWEEP_EVERY_S) - 1
        for key in [key for key in self._received if key[1] < oldest]:
            del self._received[key]
        self._received[visitor, minute] += num_bytes
        self.check(visitor)

    def check(self, visitor: str) -> None:
        """Check that there is room for more uploads by a visitor.

        Raises:
            UploadError: a limit is exceeded, or the disk is nearly full.
        """
        if sum(sent for (who, _), sent in self._received.items() if who == visitor) > self._max_visitor:
            raise UploadError(
                f"this page keeps up to {self._max_visitor // MB:,} MB of uploads per visitor, and yours are used up: "
                f"each upload is deleted {self._keep_s / 60:g} minutes after it arrives"
            )
        if self._received.total() > self._max_folder:
            raise UploadError(
                f"this page keeps up to {self._max_folder // MB:,} MB of uploads for all visitors, and they are used "
                "up: try again in a few minutes"
            )
        if shutil.disk_usage(self._folder).free < self._min_free:
            raise UploadError("this page's disk is nearly full: try again later, or contact its operator")
