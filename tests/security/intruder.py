"""Code for a confined process: it tries what no network needs to do, and records what worked."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attempt(scratch: str, secret: str, target: str) -> None:
    """Try everything, and record in `attempts.json` in `scratch` what worked."""
    libc = ctypes.CDLL(None, use_errno=True)

    def fork() -> None:
        if os.fork() == 0:
            os._exit(0)

    def trace_process(pid: int) -> None:
        if libc.ptrace(16, pid, 0, 0):
            raise OSError

    attempts: dict[str, Callable[[], Any]] = {
        "read a secret": Path(secret).read_text,
        "read another process's environment": Path(f"/proc/{os.getppid()}/environ").read_bytes,
        "write a file": lambda: Path(target).write_text("owned"),
        "empty a file": lambda: os.truncate(secret, 0),
        "remove a file": lambda: os.unlink(secret),
        "make a link": lambda: os.symlink(secret, target),
        "open a socket": socket.socket,
        "open a local socket": lambda: socket.socket(socket.AF_UNIX),
        "start a program": lambda: subprocess.run(["true"], check=True),
        "fork": fork,
        "kill": lambda: os.kill(os.getppid(), 0),
        "trace": lambda: trace_process(os.getppid()),
        "write to scratch": lambda: (Path(scratch) / "file").write_text("allowed"),
        "read Python's library": lambda: Path(os.__file__).read_text(),
        "start a thread": lambda: threading.Thread(target=int).start(),
    }
    worked = {}
    for name, act in attempts.items():
        try:
            act()
            worked[name] = True
        except OSError:
            worked[name] = False
    (Path(scratch) / "attempts.json").write_text(json.dumps(worked))


def loop_forever() -> None:
    """Never return."""
    while True:
        pass


def use_torch(scratch: str) -> None:
    """Compute with torch and write the result to `scratch`."""
    import torch

    (Path(scratch) / "sum").write_text(str(float(torch.ones(3).sum())) + sys.platform)
