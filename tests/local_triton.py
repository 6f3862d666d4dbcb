"""A Triton for tests that do not test how it starts and stops."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from asl_triton_deploy.local import LocalTriton


@contextmanager
def serve(repository: Path, **options: Any) -> Iterator[LocalTriton]:
    """Run a `LocalTriton` for the block, with shared memory even if this machine has other users.

    It is killed at the end, because stopping it properly takes seconds.
    """
    with LocalTriton(repository, **{"shared_memory": True, **options}) as triton:
        try:
            yield triton
        finally:
            with suppress(RuntimeError):  # already stopped
                kill_triton(triton.supervisor_pid)


def kill_triton(supervisor_pid: int) -> None:
    """Kill the Triton of a supervisor. The supervisor then cleans up after it."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(supervisor_pid).children():
            process.kill()
