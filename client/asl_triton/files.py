"""Files and folders on disk: atomic writes, hashes and locks."""

import errno
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

from asl_triton.errors import AslTritonError

CHUNK_BYTES = 1024 * 1024
UNFINISHED, LOCK = ".asl-triton-", ".lock"  # the prefix of `atomic_folder`'s hidden folders, and their lock file


def read_at_most(path: Path, max_bytes: int) -> bytes | None:
    """Return a file's content, or None if it is longer. Safe for endless files such as /dev/zero.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    return content if len(content) <= max_bytes else None


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an error message about `path`.

    Raises:
        AslTritonError: the block raised OSError.
    """
    try:
        yield
    except OSError as exc:
        raise AslTritonError(
            f"cannot write {path}: {exc.strerror or exc}. Make room, or choose another --output"
        ) from exc


@contextmanager
def atomic_write(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary file to fill, and rename it to `path` if the block succeeds. A failure leaves `path` as it was.

    The content is synced to disk before the rename. With `shared`, several processes may write the same path at once.

    Raises:
        OSError: the file cannot be written; the temporary file is removed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill, and rename it to `target` if the block succeeds, replacing what was there.

    Until then it is a hidden folder in `scratch`, by default next to `target`, and is removed if the block raises. Each
    call also removes the folders of processes that were killed. If `scratch` is on another mount, the files are copied
    to a hidden folder next to `target`, which is then renamed.

    Raises:
        OSError: the folder cannot be created or renamed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    parent = scratch or target.parent
    remove_abandoned(parent)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=parent) as name, ExitStack() as held:
        with suppress(AslTritonError):  # without a lock file, other processes leave the folder alone
            held.enter_context(FolderLock(Path(name) / LOCK))
        folder, replaced = Path(name) / target.name, Path(name) / "replaced"
        folder.mkdir()
        yield folder
        try:
            if target.exists():
                target.rename(replaced)
            folder.rename(target)
        except OSError as exc:
            if exc.errno != errno.EXDEV or scratch is None:
                raise
            with atomic_folder(target) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
        finally:
            if replaced.exists() and not target.exists():
                replaced.rename(target)


def remove_abandoned(parent: Path) -> None:
    """Remove the hidden folders that killed processes left behind."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        if (folder / LOCK).is_file():
            with suppress(AslTritonError), FolderLock(folder / LOCK):  # its process is still running
                shutil.rmtree(folder, ignore_errors=True)


def find_scratch_folder(parent: Path) -> Path:
    """Return where to prepare a folder that must not show up in `parent`: next to `parent`, or with temporary files."""
    beside = parent.resolve().parent
    return beside if os.access(beside, os.W_OK) else Path(tempfile.gettempdir())


def write_text(path: Path, text: str) -> Path:
    """Write a text file with `atomic_write`, creating its folder, and return the path.

    Raises:
        AslTritonError: the file cannot be written.
    """
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    return path


def ensure_folder(folder: Path, option: str = "--output") -> Path:
    """Create a folder if it does not exist, and return it. The error message names `option`, which sets the folder.

    Raises:
        AslTritonError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise AslTritonError(
            f"cannot write to {folder}: {exc.strerror or exc}. Choose another folder with {option}"
        ) from exc
    return folder


def check_writable(folder: Path) -> None:
    """Check the permissions to write to a folder, which may not exist yet.

    Raises:
        AslTritonError: the folder cannot be written to.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise AslTritonError(f"cannot write to {folder}: choose another folder with --output")


def sync_folder(folder: Path) -> None:
    """Sync the names of a folder's files to disk, on systems that can."""
    if sys.platform != "win32":
        number = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            os.fsync(number)
        os.close(number)


def sha256(source: Path, copy: Path | None = None) -> str:
    """Return the SHA-256 of a file, copying the file to `copy` along the way if given."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, open(copy or os.devnull, "wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


class FolderLock:
    """Locks a folder, with a lock file in it, for a `with` block or until this process ends.

    Error messages name the kind of process that may hold the lock (`holder`) and the option that sets the folder
    (`option`).

    Raises:
        AslTritonError: another process holds the lock, or the folder cannot be written to or locked.
    """

    def __init__(self, path: Path, holder: str = "run", option: str = "--output") -> None:
        import portalocker

        self.path, self.holder, self.option = path, holder, option
        self._lock = portalocker.Lock(
            path, "a+", timeout=0, fail_when_locked=True, flags=portalocker.LOCK_EX | portalocker.LOCK_NB
        )

    def __enter__(self) -> "FolderLock":
        import portalocker  # here, so that clients that lock nothing work on systems without locks

        try:
            file = self._lock.acquire()
            while not is_same_file(self.path, file):  # the previous holder has just deleted it
                self._lock.release()
                file = self._lock.acquire()
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), describe_this_process().encode())
        except portalocker.AlreadyLocked as exc:
            raise AslTritonError(
                f"another {self.holder} is writing to {self.path.parent}: {self._read_holder()}. Wait for it, stop it, "
                f"or choose another folder with {self.option}"
            ) from exc
        except portalocker.LockException as exc:
            raise AslTritonError(
                f"cannot lock {self.path.parent}: {exc}. Choose a folder on another file system with {self.option}, "
                "because without a lock a second run could overwrite the first one's files"
            ) from exc
        except OSError as exc:
            self._release()
            raise AslTritonError(
                f"cannot write to {self.path.parent}: {exc.strerror or exc}. Make room, or choose another folder with "
                f"{self.option}"
            ) from exc
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock.fh is not None:
            with suppress(OSError):  # Windows does not delete open files
                self.path.unlink()
        self._lock.release()

    def _read_holder(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8").strip() or "it has just started"
        except OSError:
            return "it is about to end"


def describe_this_process() -> str:
    """Return one line that identifies this process to other users."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"


def is_same_file(path: Path, file: IO[Any]) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
