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
        AslTritonError: another run holds it, which the message names; or the folder cannot be written to, or locked.
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
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), holder().encode())
        except portalocker.AlreadyLocked as exc:
            raise AslTritonError(
                f"another run writes to {self.path.parent}: {self._holder()}. Wait for it, stop it, or choose another "
                "folder with --output"
            ) from exc
        except portalocker.LockException as exc:
            raise AslTritonError(
                f"cannot lock {self.path.parent}: {exc}. Choose a folder on another file system with --output: in this "
                "one a second run would spoil the first"
            ) from exc
        except OSError as exc:
            self._let_go()
            raise AslTritonError(
                f"cannot write to {self.path.parent}: {exc.strerror or exc}. Make room, or choose another folder with "
                "--output"
            ) from exc
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._lock.fh is not None:
            with suppress(OSError):  # Windows deletes no file that is open
                self.path.unlink()
        self._lock.release()

    def _holder(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8").strip() or "it has just begun"
        except OSError:
            return "it is just ending"


def holder() -> str:
    """This process, for others to read."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"


def is_at(path: Path, file: IO[Any]) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
