"""A Triton for tests that are about something else than its life."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from asl_triton_deploy.local import LocalTriton


@contextmanager
def serve(repository: Path, **options: Any) -> Iterator[LocalTriton]:
    """A `LocalTriton` for the block, which shares memory whoever else uses this machine.

    It is killed at the end: ending in order takes it seconds.
    """
    with LocalTriton(repository, **{"shared_memory": True, **options}) as triton:
        try:
            yield triton
        finally:
            with suppress(RuntimeError):  # it has been stopped
                kill_triton(triton.supervisor_pid)


def kill_triton(supervisor_pid: int) -> None:
    """Kill the Triton of a supervisor, which then removes what it leaves."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(supervisor_pid).children():
            process.kill()
