"""What lies in /dev/shm (POSIX shared memory, as on Linux): regions that requests are written to, and servers' keys.

Anybody who may register memory with a Triton can make it read and write what other programs of its user share. So
`asl-triton serve` and `--local` start it with that closed to callers without a key, which they leave here for this
user's clients. Triton gets the key on its command line, which every user of the machine can read: where there are
others, they start it without a key, and closed to everybody. The key goes when the server does.
"""

import errno
import mmap
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from asl_triton.processes import has_ended, read_start_ticks
from asl_triton.transport.base import Array, SharedArray

FOLDER = Path("/dev/shm")
PREFIX = "asl-triton-client"
REGION_NAME = re.compile(rf"{PREFIX}-(\d+)-(\d+)-(\d+)-[0-9a-f]+")
# A region's size is a multiple of this: a clip that is a little longer than the last one still fits.
GRAIN = 4 * 2**20
ALIGNMENT = 64  # bytes, of each array in a region
# The share of /dev/shm that regions leave free: Triton's Python backend needs it too, and a container may have 64 MB.
LEFT_ALONE = 0.5
KEY_NAME = "asl-triton"
KEY_HEADER = f"triton-grpc-protocol-{KEY_NAME}"  # Triton's own prefix, for the flag --grpc-restricted-protocol
PORT = re.compile(r".*:(\d+)")


class Region:
    """Memory for the arrays of one request at a time, `size` bytes or more, under a unique name.

    All of it is reserved: a page that /dev/shm has no room for would kill this process when it is written to. Until
    `unlink`, this user's processes, and root's, can open it by its name.

    Raises:
        OSError: there is no room for it, or no /dev/shm.
    """

    def __init__(self, size: int) -> None:
        self.size = round_up(size)
        status = os.statvfs(FOLDER)
        if (status.f_bavail - status.f_blocks * LEFT_ALONE) * status.f_frsize < self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(FOLDER))
        self.name = make_name()
        file = os.open(FOLDER / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, self.size)
            self._memory = mmap.mmap(file, self.size)
        except BaseException:
            self.unlink()
            raise
        finally:
            os.close(file)

    @property
    def key(self) -> str:
        """What shm_open(3) calls it."""
        return f"/{self.name}"

    def write(self, arrays: Mapping[str, Array]) -> dict[str, SharedArray]:
        """Copy arrays into it, `size_for` them at most; returns where each one lies."""
        shared, offset = {}, 0
        for name, array in arrays.items():
            place = np.frombuffer(self._memory, array.dtype, array.size, offset)
            np.copyto(place.reshape(array.shape), array)
            shared[name] = SharedArray(self.name, offset, array.nbytes, array.shape, array.dtype)
            offset += padded_size(array)
        return shared

    def unlink(self) -> None:
        """Remove its name: from now on it is open to those only that have it, and goes with the last of them."""
        (FOLDER / self.name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of it; a server that has it keeps it."""
        self._memory.close()


def padded_size(array: Array) -> int:
    """The bytes that an array takes in a region."""
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def size_for(arrays: Mapping[str, Array]) -> int:
    """The bytes that they take together."""
    return sum(map(padded_size, arrays.values()))


def round_up(size: int) -> int:
    """The size of a region for that many bytes."""
    return -(-size // GRAIN) * GRAIN


def make_name() -> str:
    """A unique name that says whose region it is: PID namespace, PID, and when that process started."""
    pid = os.getpid()
    return f"{PREFIX}-{pid_namespace()}-{pid}-{read_start_ticks(pid)}-{secrets.token_hex(8)}"


def is_stale(name: str) -> bool:
    """Whether a region is one of ours whose process has ended.

    A process in another PID namespace, such as another container's, counts as running.
    """
    found = REGION_NAME.fullmatch(name)
    if found is None:
        return False
    namespace, pid, started = map(int, found.groups())
    return namespace == pid_namespace() and has_ended(pid, started)


def unlink_stale_regions() -> None:
    """Remove the names that processes left which were killed between making a region and unlinking it."""
    for path in FOLDER.glob(f"{PREFIX}-*"):
        if is_stale(path.name):
            path.unlink(missing_ok=True)


def pid_namespace() -> int:
    """The namespace of our process numbers."""
    return os.stat("/proc/self/ns/pid").st_ino


def new_key() -> str:
    """A random key."""
    return secrets.token_hex(16)


def leave_key(server: str, port: int, key: str) -> None:
    """Leave the key to the server of that name and gRPC port for other processes of this user.

    Raises:
        OSError: there is no shared memory here, or no room in it.
    """
    file = os.open(FOLDER / f"{server}-{port}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as stream:
        stream.write(key)


def key_headers(address: str) -> dict[str, str]:
    """The header with the key to the server at `host:port`; none where this user runs no server on that port."""
    port = PORT.fullmatch(address)
    files = FOLDER.glob(f"{KEY_NAME}-*-{port[1]}.key") if port else ()
    found = sorted(filter(None, map(read_private_file, files)))  # one that a killed server left is older
    return {KEY_HEADER: found[-1][1]} if found else {}


def read_private_file(path: Path) -> tuple[float, str] | None:
    """When a file was written, and its content; None unless it is this user's and closed to others."""
    with suppress(OSError), open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as stream:
        status = os.fstat(stream.fileno())
        if status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return status.st_mtime, stream.read()
    return None
