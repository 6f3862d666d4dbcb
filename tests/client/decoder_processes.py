"""The processes that decode for this one, seen from outside."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil


def of_this_process() -> list[psutil.Process]:
    """The servers of decoders, and the decoders."""
    return [process for process in psutil.Process().children(recursive=True) if is_decoder(process)]


def is_decoder(process: psutil.Process) -> bool:
    """Whether it is one of them; not one that has just ended."""
    try:
        return "asl_triton.decoding.worker" in process.cmdline()
    except psutil.Error:
        return False


def server_and_decoder() -> tuple[psutil.Process, psutil.Process]:
    """Of the one video that is being decoded; those of earlier tests are ending."""
    assert wait_until(lambda: len(decoders()) == 1)
    (decoder,) = decoders()
    server = decoder.parent()
    assert server is not None
    return server, decoder


def decoders() -> list[psutil.Process]:
    """The workers that decode a video now: those that have memory for its crops."""
    return [process for process in workers() if "memfd:frames" in read_maps(process)]


def workers() -> list[psutil.Process]:
    """The processes that decode, or wait for a video: they are children of one that forks them."""
    ours = of_this_process()
    servers = {process.pid for process in ours}
    return [process for process in ours if process.ppid() in servers]


def read_maps(process: psutil.Process) -> str:
    """The files and shared memory that a process has in its memory; of one that has just ended, none."""
    try:
        return Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return ""


def wait_until(is_true: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + 20
    while not (reached := is_true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return reached
