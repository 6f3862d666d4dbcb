"""`asl-triton batch` as users run it: a process that can be stopped, killed and run again."""

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
from tests.live.faults.archive import read_json_lines

COMMAND = Path(sys.executable).with_name("asl-triton")
GIVE_UP_S = 60.0
POLL_S = 0.005


class BatchRun:
    """A running `asl-triton batch FOLDER --output OUTPUT --server ADDRESS OPTIONS`.

    `prefix` goes before the command, such as a shell that sets limits. The command prints to `terminal`, or to a file
    in the folder `log`, by default the parent of its output folder.
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
            stream = file if terminal is None else terminal
            self.process = subprocess.Popen(
                [*prefix, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self._children: set[int] = set()

    @property
    def printed(self) -> str:
        """All output so far, on one line."""
        return " ".join(self._log.read_text(encoding="utf-8", errors="replace").split())

    def read_journal(self) -> list[str]:
        """Return the clips of the journal's complete lines, in order."""
        return [str(line["video"]) for line in read_json_lines(self.journal)[1:]]

    def wait_for_results(self, count: int) -> None:
        """Wait until the journal has this many results, or the run has ended."""
        self._wait_until(lambda: self.journal.exists() and self.journal.read_bytes().count(b"\n") > count)

    def wait_for_output(self, words: str) -> None:
        """Wait until the run has printed these words, or has ended."""
        self._wait_until(lambda: words in self.printed)

    def find_children(self) -> list[psutil.Process]:
        """Find the processes that it has started and that are still running."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._children |= {child.pid for child in found}
        return found

    def find_decoder(self, name: str) -> psutil.Process:
        """Wait for a child process that has a clip open, and return it."""
        found: list[psutil.Process] = []

        def is_open() -> bool:
            for process in self.find_children():
                with suppress(psutil.Error):
                    if any(Path(file.path).name == name for file in process.open_files()):
                        found.append(process)
            return bool(found)

        self._wait_until(is_open)
        return found[0]

    def send(self, number: signal.Signals) -> None:
        """Send the run a signal. SIGINT goes to all its processes, as from a terminal."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Wait for the end, and return the exit code and the output. Fails on a traceback or a leftover process."""
        code = self.process.wait(GIVE_UP_S)
        left = self._find_leftovers()
        assert "Traceback" not in self.printed, self._log.read_text()
        assert not left, left
        return code, self.printed

    def kill(self) -> list[str]:
        """Kill the run with SIGKILL, and return the clips in its journal. Fails on a leftover process."""
        self.find_children()
        self.send(signal.SIGSTOP)  # so that the journal does not change after it is read
        known = self.read_journal() if self.journal.exists() else []
        self.send(signal.SIGKILL)
        self.process.wait(GIVE_UP_S)
        assert not self._find_leftovers(), self._find_leftovers()
        return known

    def _find_leftovers(self) -> list[int]:
        """Find its processes that are still running after five seconds."""
        until_s = time.monotonic() + 5
        while (left := [pid for pid in self._children if psutil.pid_exists(pid)]) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        return left

    def _wait_until(self, is_true: Callable[[], bool]) -> None:
        until_s = time.monotonic() + GIVE_UP_S
        while not is_true() and self.process.poll() is None:
            assert time.monotonic() < until_s, self.printed
            time.sleep(POLL_S)

    def __enter__(self) -> "BatchRun":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def extract_number(printed: str, pattern: str) -> int:
    """Extract a number from a run's output, or 0 if the pattern does not match."""
    found = re.search(pattern, printed)
    return int(found[1].replace(",", "")) if found else 0
