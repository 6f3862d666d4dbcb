"""The process between a command and the Triton it started: whatever ends the command, nothing of Triton outlives it.

It is the parent of Triton, and Triton's Python stubs fall to it when Triton crashes. It stops them all, and removes
Triton's folder and shared memory, when one of these happens:

- its standard input closes: the command closed it, or died, even from SIGKILL;
- it gets SIGTERM, SIGINT or SIGHUP;
- Triton ends by itself.

`STAY` on its standard input says that the command leaves and Triton stays. Its standard output carries Triton's
process id; its standard error is Triton's log; its exit code is Triton's.

`local.py` runs this file by its path with `python -I`, so it imports the standard library only.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

STAY = b"stay"
# Triton answers the requests in flight for this long; the warden then gives it a few seconds to unload its models.
EXIT_TIMEOUT_S = 15
KILL_AFTER_S = EXIT_TIMEOUT_S + 5.0

STDIN, STDOUT, STDERR = 0, 1, 2
# From <sys/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(folder: Path, name: str, command: Sequence[str]) -> int:
    """Run `command` until it has to end, then remove `folder` and the shared memory that begins with `name`."""
    libc = ctypes.CDLL(None)
    # Orphaned stubs become children of this process, which can then wait for them.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals = open_signals()
    try:
        triton = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            stderr=STDERR,
            start_new_session=True,
            # Should this process be killed, the kernel asks Triton to stop; there is one thread here, so it is safe.
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
        )
    except OSError as exc:
        os.write(STDERR, f"cannot run {command[0]}: {exc}\n".encode())
        clean_up(folder, name)
        return 126
    with suppress(BrokenPipeError):
        os.write(STDOUT, f"{triton.pid}\n".encode())
    wait_for_exit(triton, signals)
    kill_process_tree(triton)
    clean_up(folder, name)
    return triton.returncode if triton.returncode >= 0 else 128 - triton.returncode


def open_signals() -> int:
    """A file descriptor that gives the number of every signal that ends this process or tells of a child's end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def wait_for_exit(triton: subprocess.Popen[bytes], signals: int) -> None:
    """Return when Triton has ended, or has to."""
    watched = [STDIN, signals]
    while triton.poll() is None:
        ready, _, _ = select.select(watched, [], [])
        if signals in ready and any(number != signal.SIGCHLD for number in os.read(signals, 64)):
            return
        if STDIN in ready:
            if os.read(STDIN, len(STAY)) != STAY:
                return
            watched.remove(STDIN)


def kill_process_tree(triton: subprocess.Popen[bytes]) -> None:
    """Stop Triton gently, then kill and wait for whatever of it is left."""
    triton.terminate()
    with suppress(subprocess.TimeoutExpired):
        triton.wait(KILL_AFTER_S)
    with suppress(ProcessLookupError):
        os.killpg(triton.pid, signal.SIGKILL)
    triton.wait()
    # A process that left Triton's group is a child of this one by now.
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        for pid in children.read_text().split() if children.exists() else ():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def clean_up(folder: Path, name: str) -> None:
    """Remove Triton's folder, and the shared memory that a killed stub leaves behind."""
    shutil.rmtree(folder, ignore_errors=True)
    for region in Path("/dev/shm").glob(f"{name}*"):
        region.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
