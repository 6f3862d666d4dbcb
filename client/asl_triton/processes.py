"""Processes by number, and by when they started: numbers are used again. Linux only, see proc(5)."""

import os
from pathlib import Path


def read_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for one that has ended and was not collected yet.

    Raises:
        OSError: there is no such process, or /proc hides it.
    """
    # pid (name) state ppid ...: the name may contain anything, so count from its closing bracket.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def read_start_time(pid: int) -> str | None:
    """The boot and the clock tick at which a process started, unique on this machine; None for one that has ended."""
    try:
        ticks = read_start_ticks(pid)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if ticks is None else f"{boot} {ticks}"


def has_ended(pid: int, start_ticks: int) -> bool:
    """Whether the process that had this number and started then has ended. One that /proc hides counts as running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's
    try:
        return read_start_ticks(pid) != start_ticks
    except OSError:
        return False
