"""Find the processes behind `recognize_sign` from the outside."""

import time
from collections.abc import Callable

import psutil

from asl_triton_deploy.local import LocalTriton


def find_stubs(triton: LocalTriton) -> list[psutil.Process]:
    """Find Triton's processes that run Python models."""
    return [process for process in list_processes(triton) if "python_backend_stub" in read_command_line(process)[0]]


def find_decoders(triton: LocalTriton) -> list[psutil.Process]:
    """Find the processes that are decoding a video for either model: children of the decoding servers."""
    servers = [
        process for process in list_processes(triton) if "asl_triton.decoding.worker" in read_command_line(process)
    ]
    parents = {server.pid for server in servers}
    return [process for process in servers if process.ppid() in parents]


def list_processes(triton: LocalTriton) -> list[psutil.Process]:
    """List all processes of a server."""
    return psutil.Process(triton.supervisor_pid).children(recursive=True)


def read_command_line(process: psutil.Process) -> list[str]:
    """Read the command line of a process, or `[""]` if it has just exited."""
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


def wait_until(is_true: Callable[[], bool], seconds: float = 30) -> bool:
    """Wait until a condition is true, and return whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not (is_done := is_true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_done
