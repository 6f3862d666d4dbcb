"""How far a batch is: a bar on a terminal, a line now and then elsewhere."""

import bisect
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from asl_triton.journal import Outcome
from asl_triton.predictions import Recognition

ROWS_SHOWN = 40  # recognitions kept for the table at the end
LINE_EVERY_S = 10.0


class ClipProgress:
    """Counts outcomes on standard error; `shown` keeps the first of them by name, for a table."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = self.failed = 0
        self.shown: list[Recognition] = []
        self._console = Console(stderr=True)
        self._began_s = self._line_s = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("Recognising", total=total, rate="")

    def advance(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.done += 1
        if not isinstance(outcome, Recognition):
            self.failed += 1
        else:
            bisect.insort(self.shown, outcome, key=lambda recognition: recognition.video)
            del self.shown[ROWS_SHOWN:]
        now_s = time.monotonic()
        rate = self.done / max(now_s - self._began_s, 1e-3)
        self._bar.update(self._task, completed=self.done, rate=f"{rate:.1f}/s" + self._failures())
        if not self._console.is_terminal and now_s - self._line_s >= LINE_EVERY_S:
            self._line_s = now_s
            left_s = (self.total - self.done) / rate
            self._console.print(
                f"{self.done}/{self.total} clips{self._failures()}, {rate:.1f} a second, {left_s:.0f} s left"
            )

    def _failures(self) -> str:
        return f", {self.failed} failed" if self.failed else ""

    def __enter__(self) -> "ClipProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
