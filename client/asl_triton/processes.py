"""Identifies processes by PID and start time, because PIDs are reused. Linux only, see proc(5)."""

import os
from pathlib import Path


def read_start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None if it has ended and was not reaped yet.

    Raises:
        OSError: the process does not exist, or /proc hides it.
    """
    # pid (name) state ppid ...: the name may contain anything, so count from its closing parenthesis.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def read_start_time(pid: int) -> str | None:
    """Return the boot id and clock tick at which a process started, unique on this machine; None if it has ended."""
    try:
        ticks = read_start_ticks(pid)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if ticks is None else f"{boot} {ticks}"


def has_ended(pid: int, start_ticks: int) -> bool:
    """Return whether the process with this PID and start time has ended. If /proc hides it, it counts as running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's process
    try:
        return read_start_ticks(pid) != start_ticks
    except OSError:
        return False
