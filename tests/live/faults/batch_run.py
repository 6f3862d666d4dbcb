"""`asl-triton batch` as users run it: a process that can be stopped, killed and run again, and what it leaves."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from asl_triton.batch.journal import JOURNAL
from tests.live.faults.archive import lines_of

COMMAND = Path(sys.executable).with_name("asl-triton")
GIVE_UP_S = 60.0
POLL_S = 0.005


class BatchRun:
    """A run of `asl-triton batch FOLDER --output OUTPUT --server ADDRESS OPTIONS`, under way until it is waited for.

    `prefix` goes before the command, such as a shell that sets limits. What it says goes to `terminal`, or to a file in
    `log`, which is the folder of its output if not given.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        address: str,
        *options: object,
        model: str = "quick",
        prefix: tuple[str, ...] = (),
        log: Path | None = None,
        terminal: int | None = None,
    ) -> None:
        self.output, self.journal = output, output / JOURNAL
        self._log = (log or output.parent) / f"{output.name}-{time.monotonic_ns()}.log"
        arguments = [COMMAND, "batch", folder, "--output", output, "--server", address, "--model", model, *options]
        with self._log.open("wb") as file:
            to = file if terminal is None else terminal
            self.process = subprocess.Popen(
                [*prefix, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=to,
                start_new_session=True,
            )
        self._below: set[int] = set()

    @property
    def told(self) -> str:
        """All it has said so far, on one line."""
        return " ".join(self._log.read_text(encoding="utf-8", errors="replace").split())

    def known(self) -> list[str]:
        """The clips of the journal's whole lines, in their order."""
        return [str(line["video"]) for line in lines_of(self.journal)[1:]]

    def until_known(self, count: int) -> None:
        """Wait for so many lines of the journal; or for the end of the run, if that comes first."""
        self._until(lambda: self.journal.exists() and self.journal.read_bytes().count(b"\n") > count)

    def until_told(self, words: str) -> None:
        """Wait for the run to say this; or for its end, if that comes first."""
        self._until(lambda: words in self.told)

    def below(self) -> list[psutil.Process]:
        """The processes that it has started, as far as they still run."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._below |= {child.pid for child in found}
        return found

    def decoder_of(self, name: str) -> psutil.Process:
        """The process below it that has a clip open, when there is one."""
        found: list[psutil.Process] = []

        def is_open() -> bool:
            for process in self.below():
                with suppress(psutil.Error):
                    if any(Path(file.path).name == name for file in process.open_files()):
                        found.append(process)
            return bool(found)

        self._until(is_open)
        return found[0]

    def send(self, number: signal.Signals) -> None:
        """Send the run a signal: SIGINT to all its processes, as a terminal does."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for its end: exit code, and all it said. No traceback, no process of its own is left."""
        code = self.process.wait(GIVE_UP_S)
        left = self._left()
        assert "Traceback" not in self.told, self._log.read_text()
        assert not left, left
        return code, self.told

    def kill(self) -> list[str]:
        """`kill -9`, which leaves no process of its own: the clips that it knew just before."""
        self.below()
        self.send(signal.SIGSTOP)  # so that it learns nothing between the look and the end
        known = self.known() if self.journal.exists() else []
        self.send(signal.SIGKILL)
        self.process.wait(GIVE_UP_S)
        assert not self._left(), self._left()
        return known

    def _left(self) -> list[int]:
        """Its processes that are still there some seconds after it."""
        until_s = time.monotonic() + 5
        while (left := [pid for pid in self._below if psutil.pid_exists(pid)]) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        return left

    def _until(self, has_come: Callable[[], bool]) -> None:
        until_s = time.monotonic() + GIVE_UP_S
        while not has_come() and self.process.poll() is None:
            assert time.monotonic() < until_s, self.told
            time.sleep(POLL_S)

    def __enter__(self) -> "BatchRun":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def figure(told: str, pattern: str) -> int:
    """The number in what a run said, such as that before `recognized`."""
    found = re.search(pattern, told)
    return int(found[1].replace(",", "")) if found else 0
