"""Run a command under a memory limit: it ends when all of its processes together take more.

    python -m tests.security.memory_limit [--gb 4] python -m pytest tests/security

What is summed is proportional set size, so that shared pages count once. A process alone cannot even allocate more
(RLIMIT_DATA); the sum is read four times per second. This needs neither root nor control groups; where systemd runs,
`systemd-run --user --scope -p MemoryMax=4G -p MemorySwapMax=0 COMMAND` has the kernel do it.
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
MARK = "ASL_TRITON_MEMORY_LIMIT"  # in the environment of the command, and so of all that it starts
OVER_LIMIT = 99  # the exit code


def find_processes(mark: str) -> Iterator[psutil.Process]:
    """All processes of the command, those too whose parent has ended."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get(MARK) == mark:
                yield process


def sum_memory(mark: str) -> tuple[int, list[str]]:
    """Bytes that the processes of the command take, and a line for each of the largest."""
    taken: list[tuple[int, str]] = []
    for process in find_processes(mark):
        with suppress(psutil.Error):  # it has ended
            taken.append((process.memory_full_info().pss, " ".join(process.cmdline())[:100]))
    largest = sorted(taken, reverse=True)[:6]
    return sum(size for size, _ in taken), [f"{size / 1e6:7.0f} MB  {line}" for size, line in largest]


def run(command: list[str], limit_bytes: int) -> int:
    """Run a command to its end or to the limit: its exit code, or `OVER_LIMIT`."""
    mark, peak_bytes, largest, code = f"{os.getpid()}-{time.time_ns()}", 0, [""], 0
    limits = (limit_bytes, limit_bytes)
    with subprocess.Popen(
        command,
        env=os.environ | {MARK: mark},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limits),
    ) as process:
        while process.poll() is None:
            taken_bytes, lines = sum_memory(mark)
            if taken_bytes > peak_bytes:
                peak_bytes, largest = taken_bytes, lines
            if taken_bytes > limit_bytes:
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
    parser.add_argument("--gb", type=float, default=4.0, help="of 10^9 bytes (default: 4)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    return run(given.command, int(given.gb * 10**9))


if __name__ == "__main__":
    sys.exit(main())
