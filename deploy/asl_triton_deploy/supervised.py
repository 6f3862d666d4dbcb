"""The warden's process as its parent sees it."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from asl_triton_deploy import supervisor as warden

STOP_TIMEOUT_S = warden.KILL_AFTER_S + 10.0


class SupervisedTriton:
    """A started warden (see `warden.py`) and the Triton it keeps; nothing of both outlives this process.

    `pid` is the process that stops Triton on SIGTERM and ends when nothing of it is left; `triton_pid` is Triton's.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, name: str, log_path: Path
    ) -> None:
        self._folder = folder
        self._name = name
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", warden.__file__, str(folder), name, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env={**os.environ, **environment},
                # Ctrl-C in a terminal reaches this process only, which then stops Triton in order.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.triton_pid = int(self._process.stdout.readline() or 0)

    def has_ended(self, timeout_s: float | None) -> bool:
        """Wait for Triton to end by itself, for ever when `timeout_s` is None."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def how_it_ended(self, why: str = "") -> str:
        """`killed by SIGKILL`, or `with exit code 1: <why>`."""
        code = self._process.wait()
        signals = {128 + number: number.name for number in signal.Signals}
        name = signals.get(code if code >= 0 else 128 - code)
        if name is not None:
            return f"killed by {name}"
        return f"with exit code {code}: {why}" if why else f"with exit code {code}"

    def detach(self) -> None:
        """Let Triton outlive this process. Raises BrokenPipeError when it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(warden.STAY)
        self._process.stdin.flush()
        self._close_pipes()
        # Not ours to wait for any more; without this, Popen warns when it is collected.
        self._process.returncode = 0

    def stop(self) -> None:
        """Stop Triton and return when none of its processes is left."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._close_pipes()
        # Done already, unless somebody killed the warden.
        warden.clean_up(self._folder, self._name)

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
