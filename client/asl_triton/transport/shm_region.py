"""Files in /dev/shm (POSIX shared memory on Linux): regions that requests are written to, and servers' keys.

Whoever may register memory with a Triton can make it read and write the shared memory of its user's other programs. So
`asl-triton serve` and `--local` start Triton such that registering requires a key, which they store here for this
user's clients. Triton gets the key on its command line, which every user of the machine can read. If the machine has
other users, Triton therefore starts without a key and refuses to register memory at all. The key is deleted when the
server ends.
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
# A region's size is a multiple of this, so that a clip a little longer than the last one still fits.
GRAIN = 4 * 2**20
ALIGNMENT = 64  # bytes, of each array in a region
# The share of /dev/shm that regions leave free. Triton's Python backend needs it too, and a container may have 64 MB.
LEFT_ALONE = 0.5
KEY_NAME = "asl-triton"
KEY_HEADER = f"triton-grpc-protocol-{KEY_NAME}"  # Triton's own prefix, for the flag --grpc-restricted-protocol
PORT = re.compile(r".*:(\d+)")


class Region:
    """Memory of at least `size` bytes under a unique name, for the arrays of one request at a time.

    All of it is reserved at once, because writing to a page that /dev/shm has no room for would kill this process.
    Until `unlink`, processes of this user and of root can open it by its name.

    Raises:
        OSError: there is not enough room, or there is no /dev/shm.
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
        """The region's name for shm_open(3)."""
        return f"/{self.name}"

    def write(self, arrays: Mapping[str, Array]) -> dict[str, SharedArray]:
        """Copy arrays into the region, which must have `size_for` of them, and return the place of each."""
        shared, offset = {}, 0
        for name, array in arrays.items():
            place = np.frombuffer(self._memory, array.dtype, array.size, offset)
            np.copyto(place.reshape(array.shape), array)
            shared[name] = SharedArray(self.name, offset, array.nbytes, array.shape, array.dtype)
            offset += padded_size(array)
        return shared

    def unlink(self) -> None:
        """Remove the region's name. Only processes that have it open keep it, and it is freed with the last of them."""
        (FOLDER / self.name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the region in this process. A server that has it open keeps it."""
        self._memory.close()


def padded_size(array: Array) -> int:
    """Return the number of bytes that an array takes in a region."""
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def size_for(arrays: Mapping[str, Array]) -> int:
    """Return the number of bytes that arrays take together."""
    return sum(map(padded_size, arrays.values()))


def round_up(size: int) -> int:
    """Return the size of a region for this number of bytes."""
    return -(-size // GRAIN) * GRAIN


def make_name() -> str:
    """Make a unique name that identifies the region's process: PID namespace, PID, and start time."""
    pid = os.getpid()
    return f"{PREFIX}-{pid_namespace()}-{pid}-{read_start_ticks(pid)}-{secrets.token_hex(8)}"


def is_stale(name: str) -> bool:
    """Whether a region belongs to an asl-triton process that has ended.

    Processes in other PID namespaces, such as those of other containers, count as running.
    """
    found = REGION_NAME.fullmatch(name)
    if found is None:
        return False
    namespace, pid, started = map(int, found.groups())
    return namespace == pid_namespace() and has_ended(pid, started)


def unlink_stale_regions() -> None:
    """Remove the names of regions whose processes were killed between creating and unlinking them."""
    for path in FOLDER.glob(f"{PREFIX}-*"):
        if is_stale(path.name):
            path.unlink(missing_ok=True)


def pid_namespace() -> int:
    """Return the id of this process's PID namespace."""
    return os.stat("/proc/self/ns/pid").st_ino


def new_key() -> str:
    """Generate a random key."""
    return secrets.token_hex(16)


def leave_key(server: str, port: int, key: str) -> None:
    """Store the key of a server, by its name and gRPC port, for other processes of this user.

    Raises:
        OSError: there is no /dev/shm, or it is full.
    """
    file = os.open(FOLDER / f"{server}-{port}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as stream:
        stream.write(key)


def key_headers(address: str) -> dict[str, str]:
    """Return the header with the key for the server at `host:port`. Empty if this user has no server on that port."""
    port = PORT.fullmatch(address)
    files = FOLDER.glob(f"{KEY_NAME}-*-{port[1]}.key") if port else ()
    found = sorted(filter(None, map(read_private_file, files)))  # keys left by killed servers are older
    return {KEY_HEADER: found[-1][1]} if found else {}


def read_private_file(path: Path) -> tuple[float, str] | None:
    """Return a file's modification time and content, or None unless it is this user's and private."""
    with suppress(OSError), open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as stream:
        status = os.fstat(stream.fileno())
        if status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return status.st_mtime, stream.read()
    return None
