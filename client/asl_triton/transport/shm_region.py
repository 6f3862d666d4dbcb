"""Memory that this process shares with a server on the same machine: reserved, named, written, and whose it is.

Linux alone has it as it is used here: a region is a file in /dev/shm (POSIX shared memory), and stays after its name.
"""

import errno
import itertools
import mmap
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from asl_triton.processes import has_ended, read_start_ticks
from asl_triton.transport.base import Array

FOLDER = Path("/dev/shm")
PREFIX = "asl-triton-client"
NAME = re.compile(rf"{PREFIX}-(\d+)-(\d+)-(\d+)-[0-9a-f]+")
# A region is that many bytes or a multiple: a clip that is a little longer than the last one still fits.
GRAIN = 4 * 2**20
ALIGNMENT = 64  # bytes, of each array in a region
# Of /dev/shm, regions leave so much alone: Triton's Python backend lives there too, and a container may have 64 MB.
LEFT_ALONE = 0.5


class Region:
    """Memory for the arrays of one request at a time, at least `size` bytes of it, under a name of its own.

    All of it is reserved: a page for which /dev/shm has no room would end this process when it is written to. Whoever
    knows the name may open it, while it has one; only this user's processes, and root's, are let in.

    `in_doubt`: a server may still read from it, so that it must not be written again.

    Raises:
        OSError: there is no room for it, or no /dev/shm.
    """

    def __init__(self, size: int) -> None:
        self.size = round_up(size)
        self.in_doubt = False
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

    def write(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """Copy arrays of that many bytes at most (`size_for`) into it; gives the offset of each."""
        offsets = dict(zip(arrays, itertools.accumulate(map(padded_size, arrays.values()), initial=0), strict=False))
        for name, array in arrays.items():
            place = np.frombuffer(self._memory, array.dtype, array.size, offsets[name])
            np.copyto(place.reshape(array.shape), array)
        return offsets

    def unlink(self) -> None:
        """From now on only those have it who have it now; it ends with them, however they end."""
        (FOLDER / self.name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of it. A server that has it keeps it."""
        self._memory.close()


def padded_size(array: Array) -> int:
    """The bytes that an array takes in a region."""
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def size_for(arrays: Mapping[str, Array]) -> int:
    """The bytes that they take together."""
    return sum(map(padded_size, arrays.values()))


def round_up(size: int) -> int:
    """The size of the region for so many bytes."""
    return -(-size // GRAIN) * GRAIN


def make_name() -> str:
    """A name that no other region has, and that says whose it is: PID namespace, PID, and when that process started."""
    pid = os.getpid()
    return f"{PREFIX}-{pid_namespace()}-{pid}-{read_start_ticks(pid)}-{secrets.token_hex(8)}"


def is_stale(name: str) -> bool:
    """Whether a region is one of ours whose process has ended.

    Nobody can tell that of a process in another PID namespace, such as another container's: it counts as running.
    """
    found = NAME.fullmatch(name)
    if found is None:
        return False
    namespace, pid, started = map(int, found.groups())
    return namespace == pid_namespace() and has_ended(pid, started)


def unlink_stale_regions() -> None:
    """Remove the names of processes that were killed in the moment between making a region and forgetting its name."""
    for path in FOLDER.glob(f"{PREFIX}-*"):
        if is_stale(path.name):
            path.unlink(missing_ok=True)


def pid_namespace() -> int:
    """The namespace that our process numbers are of."""
    return os.stat("/proc/self/ns/pid").st_ino
