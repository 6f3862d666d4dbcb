"""The process between a command and the Triton that it started. However either ends, nothing of Triton is left behind.

When asked to stop, Triton cleans up by itself. But a Triton that crashes leaves its Python stubs running, with their
models in memory, and leaves its shared memory; and a command that is killed leaves Triton's folder. So this process is
Triton's parent, and adopts the stubs when Triton crashes. It stops all of them, and removes Triton's folder and shared
memory, when one of these happens:

- its standard input closes, because the command closed it or died, even from SIGKILL;
- it receives SIGTERM, SIGINT, or SIGHUP;
- Triton exits by itself, other than by a crash.

A Python stub that dies takes its model with it: Triton still reports ready, but refuses every request to that model.
One request with an impossible shape is enough (Triton 2.51), and other requests crash Triton itself. So after `WATCH`
arrives, Triton is restarted whenever a stub dies or Triton crashes, with growing pauses if that keeps happening.

`STAY` on its standard input means that the command exits and Triton stays. Standard output carries Triton's process id,
standard error is Triton's log, and the exit code is Triton's.

This file is run by its path with `python -I`, so it imports the standard library only.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

STAY, WATCH = b"stay", b"look"
WATCH_EVERY_S = 1.0
MAX_PAUSE_S = 60.0  # before Triton is restarted
# Triton has this long to answer requests in flight, and then a few seconds to unload its models.
EXIT_TIMEOUT_S = 15
KILL_AFTER_S = EXIT_TIMEOUT_S + 5.0
STOP_TIMEOUT_S = KILL_AFTER_S + 10.0

STDIN, STDOUT, STDERR = 0, 1, 2
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
# From <sys/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class SupervisedTriton:
    """A Triton and its supervisor, as the command sees them. Neither outlives the command's process.

    `pid` is the supervisor, which stops Triton on SIGTERM and exits once nothing of it is left. `triton_pid` is Triton.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, name: str, log_path: Path
    ) -> None:
        self._folder = folder
        self._name = name
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__, str(folder), name, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env={**os.environ, **environment},
                # Ctrl-C in a terminal must only reach this process, which then stops Triton cleanly.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.triton_pid = int(self._process.stdout.readline() or 0)

    def has_ended(self, timeout_s: float | None) -> bool:
        """Wait for Triton to exit by itself, forever if `timeout_s` is None. Returns whether it has."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def describe_end(self, why: str = "") -> str:
        """Describe how it ended: `killed by SIGKILL`, or `with exit code 1: <why>`."""
        code = self._process.wait()
        signals = {128 + number: number.name for number in signal.Signals}
        name = signals.get(code if code >= 0 else 128 - code)
        if name is not None:
            return f"killed by {name}"
        return f"with exit code {code}: {why}" if why else f"with exit code {code}"

    def watch(self) -> None:
        """From now on, restart Triton when it crashes or when a process of one of its models dies."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has exited, which `has_ended` reports
            self._process.stdin.write(WATCH)
            self._process.stdin.flush()

    def detach(self) -> None:
        """Let Triton outlive this process. Raises BrokenPipeError if it has exited."""
        assert self._process.stdin is not None
        self._process.stdin.write(STAY)
        self._process.stdin.flush()
        self._close_pipes()
        # It is no longer ours to wait for; without this, Popen warns when garbage-collected.
        self._process.returncode = 0

    def stop(self) -> None:
        """Stop Triton and wait until all of its processes have ended."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._close_pipes()
        # The supervisor has already done this, unless it was killed.
        clean_up(self._folder, self._name)

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main(folder: Path, name: str, command: Sequence[str]) -> int:
    """Run `command` until it must end, then remove `folder` and the shared memory whose name starts with `name`."""
    libc = ctypes.CDLL(None)
    # Orphaned stubs become children of this process, so that it can wait for them.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # `sigtimedwait` below receives them

    def prepare_triton() -> None:  # runs in Triton's process; safe because this one is single-threaded
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # in case this process is killed

    def start_triton() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            stderr=STDERR,
            start_new_session=True,
            preexec_fn=prepare_triton,
        )

    try:
        triton = start_triton()
    except OSError as exc:
        os.write(STDERR, f"cannot run {command[0]}: {exc}\n".encode())
        clean_up(folder, name)
        return 126
    with suppress(BrokenPipeError):
        os.write(STDOUT, f"{triton.pid}\n".encode())
    is_watching = threading.Event()
    threading.Thread(target=watch_command, args=(is_watching,), daemon=True).start()
    began_s, pause_s = time.monotonic(), 0.0
    while True:
        received = signal.sigtimedwait(SIGNALS, WATCH_EVERY_S)
        if received is not None and received.si_signo != signal.SIGCHLD:
            break
        code = triton.poll()
        has_crashed = code is not None and -code in CRASHES and is_watching.is_set()
        if code is not None and not has_crashed:
            break
        if not is_watching.is_set() or time.monotonic() - began_s < pause_s:
            continue
        if has_crashed or has_dead_stub(triton.pid):
            what = "Triton has crashed" if has_crashed else "a process of a model has died"
            os.write(STDERR, f"asl-triton: {what}, so Triton is restarted\n".encode())
            pause_s = min(max(2 * pause_s, 1.0), MAX_PAUSE_S) if time.monotonic() - began_s < MAX_PAUSE_S else 1.0
            kill_process_tree(triton, gently=False)  # with a dead stub, a clean exit may take the full timeout
            remove_memory(name, keep=".key")
            triton, began_s = start_triton(), time.monotonic()
    kill_process_tree(triton)
    clean_up(folder, name)
    return triton.returncode if triton.returncode >= 0 else 128 - triton.returncode


def watch_command(is_watching: threading.Event) -> None:
    """End this process when its standard input closes, unless `STAY` arrived before."""
    while (said := os.read(STDIN, len(STAY))) == WATCH:
        is_watching.set()
    if said != STAY:
        os.kill(os.getpid(), signal.SIGTERM)


def has_dead_stub(triton: int) -> bool:
    """Whether a child of Triton is a zombie: Triton keeps its models' processes, and does not notice when one dies."""
    for children in Path(f"/proc/{triton}/task").glob("*/children"):
        with suppress(OSError):  # a thread or process that has exited
            for pid in children.read_text().split():
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    return True
    return False


def kill_process_tree(triton: subprocess.Popen[bytes], *, gently: bool = True) -> None:
    """Stop Triton, then kill and wait for whatever is left of it. `gently` lets it answer requests in flight."""
    if gently:
        triton.terminate()
        with suppress(subprocess.TimeoutExpired):
            triton.wait(KILL_AFTER_S)
    with suppress(ProcessLookupError):
        os.killpg(triton.pid, signal.SIGKILL)
    triton.wait()
    # By now, a process that left Triton's group is a child of this one.
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
    """Remove Triton's folder and the shared memory that killed stubs leave behind."""
    shutil.rmtree(folder, ignore_errors=True)
    remove_memory(name)


def remove_memory(name: str, *, keep: str | None = None) -> None:
    """Remove shared memory whose name starts with `name`, except files with the suffix `keep`."""
    for region in Path("/dev/shm").glob(f"{name}*"):
        if region.suffix != keep:
            region.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
