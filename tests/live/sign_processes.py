"""The processes behind `recognize_sign`, seen from outside."""

import time
from collections.abc import Callable

import psutil

from asl_triton_deploy.local import LocalTriton


def stubs_of(triton: LocalTriton) -> list[psutil.Process]:
    """Triton's processes that run Python models."""
    return [process for process in family(triton) if "python_backend_stub" in words(process)[0]]


def decoders(triton: LocalTriton) -> list[psutil.Process]:
    """The processes that decode a video now, of both models: children of the servers that forked them."""
    servers = [process for process in family(triton) if "asl_triton.decoding.worker" in words(process)]
    parents = {server.pid for server in servers}
    return [process for process in servers if process.ppid() in parents]


def family(triton: LocalTriton) -> list[psutil.Process]:
    """All processes of a server."""
    return psutil.Process(triton.supervisor_pid).children(recursive=True)


def words(process: psutil.Process) -> list[str]:
    """How a process was started; of one that has just ended, nothing."""
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


def wait_until(is_true: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + seconds
    while not (reached := is_true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached
