"""One run at a time in a folder: a file that the operating system locks, and that says who holds it."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import portalocker

from asl_triton.errors import AslTritonError


class FolderLock:
    """Holds a folder for the length of a `with` block; it is let go of however this process ends.

    Raises:
        AslTritonError: another run holds it, which the message names; or the folder cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = portalocker.Lock(
            path, "a+", timeout=0, fail_when_locked=True, flags=portalocker.LOCK_EX | portalocker.LOCK_NB
        )

    def __enter__(self) -> "FolderLock":
        try:
            file = self._lock.acquire()
            while not is_at(self.path, file):  # whoever held it has just deleted it
                self._lock.release()
                file = self._lock.acquire()
        except portalocker.AlreadyLocked as exc:
            raise AslTritonError(
                f"another run writes to {self.path.parent}: {self._holder()}. Wait for it, stop it, or choose another "
                "folder with --output"
            ) from exc
        except (OSError, portalocker.LockException) as exc:
            said = exc.strerror if isinstance(exc, OSError) else exc
            raise AslTritonError(
                f"cannot write to {self.path.parent}: {said}. Choose another folder with --output"
            ) from exc
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(OSError):  # Windows deletes no file that is open
            self.path.unlink()
        self._lock.release()

    def _holder(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8").strip() or "it has just begun"
        except OSError:
            return "it is just ending"


def is_at(path: Path, file: IO[Any]) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
