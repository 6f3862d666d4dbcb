"""The key to the shared memory of a Triton that this user runs here: who may read the user's files may use it.

Whoever may register memory with a Triton may make it read, and write, what its user's other programs share. So
`asl-triton serve` and `--local` start it with that closed but for callers with a key, which they leave beside the
memory itself; it goes when the server does.
"""

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from asl_triton.transport.shm_region import FOLDER

NAME = "asl-triton"
HEADER = f"triton-grpc-protocol-{NAME}"  # Triton's own prefix, for the flag --grpc-restricted-protocol
ON_A_PORT = re.compile(r".*:(\d+)")


def leave_key(server: str, port: int, key: str) -> None:
    """Leave the key to a server of that name, whose gRPC port that is, for other processes of this user.

    Raises:
        OSError: there is no shared memory here, or no room in it.
    """
    file = os.open(FOLDER / f"{server}-{port}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as stream:
        stream.write(key)


def new_key() -> str:
    """A key that nobody guesses."""
    return secrets.token_hex(16)


def key_headers(address: str) -> dict[str, str]:
    """The header with the key to the server at `host:port`; nothing where this user runs none on that port."""
    port = ON_A_PORT.fullmatch(address)
    files = FOLDER.glob(f"{NAME}-*-{port[1]}.key") if port else ()
    found = sorted(filter(None, map(own_file, files)))  # one that a killed server left is older
    return {HEADER: found[-1][1]} if found else {}


def own_file(path: Path) -> tuple[float, str] | None:
    """When a file was written, and what is in it; None unless it is this user's and closed to others."""
    with suppress(OSError), open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as stream:
        status = os.fstat(stream.fileno())
        if status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return status.st_mtime, stream.read()
    return None
