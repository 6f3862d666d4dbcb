"""Run a command under a memory limit, and kill it when all its processes together exceed the limit.

    python -m tests.security.memory_limit [--gb 4] python -m pytest tests/security

The sum is of proportional set sizes, so that shared pages count once, and is read four times per second. RLIMIT_DATA
keeps a single process from allocating more. This needs neither root nor control groups. With systemd, `systemd-run
--user --scope -p MemoryMax=4G -p MemorySwapMax=0 COMMAND` lets the kernel do it.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil

READ_EVERY_S = 0.25
MARK = "ASL_TRITON_MEMORY_LIMIT"  # set in the command's environment, which its child processes inherit
OVER_LIMIT = 99  # the exit code


def find_processes(mark: str) -> Iterator[psutil.Process]:
    """Find all processes of the command, including those whose parent has exited."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has exited, or belongs to another user
            if process.environ().get(MARK) == mark:
                yield process


def sum_memory(mark: str) -> tuple[int, list[str]]:
    """Return the bytes used by the command's processes, and one line for each of the largest."""
    used: list[tuple[int, str]] = []
    for process in find_processes(mark):
        with suppress(psutil.Error):  # it has exited
            used.append((process.memory_full_info().pss, " ".join(process.cmdline())[:100]))
    largest = sorted(used, reverse=True)[:6]
    return sum(size for size, _ in used), [f"{size / 1e6:7.0f} MB  {line}" for size, line in largest]


def run(command: list[str], limit_bytes: int) -> int:
    """Run a command, and return its exit code, or `OVER_LIMIT` if it was killed."""
    mark, peak_bytes, largest, code = f"{os.getpid()}-{time.time_ns()}", 0, [""], 0
    limits = (limit_bytes, limit_bytes)
    with subprocess.Popen(
        command,
        env=os.environ | {MARK: mark},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limits),
    ) as process:
        while process.poll() is None:
            used_bytes, lines = sum_memory(mark)
            if used_bytes > peak_bytes:
                peak_bytes, largest = used_bytes, lines
            if used_bytes > limit_bytes:
                code = OVER_LIMIT
                for child in find_processes(mark):
                    with suppress(psutil.Error):
                        child.kill()
            time.sleep(READ_EVERY_S)
        code = code or process.returncode
    print(f"peak memory of all processes: {peak_bytes / 1e6:,.0f} MB of {limit_bytes / 1e6:,.0f}", *largest, sep="\n")
    return code


def main() -> int:
    """Read the command line and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0, help="limit in units of 10^9 bytes (default: 4)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    return run(arguments.command, int(arguments.gb * 10**9))


if __name__ == "__main__":
    sys.exit(main())
