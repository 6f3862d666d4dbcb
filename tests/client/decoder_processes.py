"""Finds the decoder processes of this process."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil


def of_this_process() -> list[psutil.Process]:
    """Return the fork servers and the workers."""
    return [process for process in psutil.Process().children(recursive=True) if is_decoder(process)]


def is_decoder(process: psutil.Process) -> bool:
    """Return whether this is a fork server or a worker. A process that has just ended is neither."""
    try:
        return "asl_triton.decoding.worker" in process.cmdline()
    except psutil.Error:
        return False


def server_and_decoder() -> tuple[psutil.Process, psutil.Process]:
    """Return the fork server and the worker of the one video being decoded, once those of earlier tests have ended."""
    assert wait_until(lambda: len(decoders()) == 1)
    (decoder,) = decoders()
    server = decoder.parent()
    assert server is not None
    return server, decoder


def decoders() -> list[psutil.Process]:
    """Return the workers that are decoding a video: those with memory for its crops."""
    return [process for process in workers() if "memfd:frames" in read_maps(process)]


def workers() -> list[psutil.Process]:
    """Return the children of the fork servers: they decode a video or wait for one."""
    ours = of_this_process()
    servers = {process.pid for process in ours}
    return [process for process in ours if process.ppid() in servers]


def read_maps(process: psutil.Process) -> str:
    """Return the files and shared memory that a process has mapped: none if it has just ended."""
    try:
        return Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return ""


def wait_until(is_true: Callable[[], bool]) -> bool:
    """Wait up to 20 s, and return whether the condition became true."""
    deadline = time.monotonic() + 20
    while not (reached := is_true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return reached
