"""The progress of a batch: a bar on a terminal, an occasional line elsewhere."""

import bisect
import os
import time
from types import TracebackType
from typing import Any, Generic

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from asl_triton.batch.workers import Observer, Result
from asl_triton.cli.terminal import Console
from asl_triton.results import Failure

ROWS_SHOWN = 40  # recognitions kept for the table at the end
LINE_EVERY_S = 10.0


class BrokenPipeSafeConsole(Console):
    """A console that survives when its terminal is closed or the program behind its pipe ends."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, unless the reader is gone."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def __exit__(self, *exception: Any) -> None:
        try:
            super().__exit__(*exception)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Stop printing. Rich would exit the program here."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # otherwise Python fails to flush at exit
        os.close(nowhere)


class ClipProgress(Observer, Generic[Result]):
    """Counts outcomes on standard error. `shown` keeps the first recognitions by name, for a table."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = self.failed = self.skipped = 0
        self.shown: list[Result] = []
        self._shares: dict[str, float] = {}  # 0 to 1, of clips under way that report their progress
        self._console = BrokenPipeSafeConsole(stderr=True)
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
        self._task = self._bar.add_task("Recognizing", total=total, rate="")

    def advance(self, outcome: Result | Failure) -> None:
        """Count one outcome."""
        self.done += 1
        self._shares.pop(outcome.video, None)
        if isinstance(outcome, Failure):
            self.failed += 1
        else:
            bisect.insort(self.shown, outcome, key=lambda known: known.video)
            del self.shown[ROWS_SHOWN:]
        self._refresh()

    def skip(self, count: int) -> None:
        """Count clips that an earlier run answered."""
        self.done += count
        self.skipped += count
        self._refresh()

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self._console.print(escape(sentence), highlight=False, soft_wrap=True)

    def move(self, video: str, share: float) -> None:
        """Update how much of a clip was read, 0 to 1."""
        self._shares[video] = share
        self._refresh()

    def _refresh(self) -> None:
        now_s = time.monotonic()
        done = self.done + sum(self._shares.values())
        rate = (done - self.skipped) / max(now_s - self._began_s, 1e-3)
        rate_text = f"{rate:.1f} a second" if rate >= 0.1 else f"{60 * rate:.1f} a minute"
        self._bar.update(self._task, completed=done, rate=rate_text + self._failures())
        if not self._console.is_terminal and now_s - self._line_s >= LINE_EVERY_S:
            self._line_s = now_s
            under_way = f", {len(self._shares)} under way" if self._shares else ""
            if self._shares:
                under_way += f" ({sum(self._shares.values()) / len(self._shares):.0%} read)"
            left_s = (self.total - done) / max(rate, 1e-6)
            self._console.print(
                f"{self.done}/{self.total} clips{under_way}{self._failures()}, {rate_text}, {left_s:.0f} s left"
            )

    def _failures(self) -> str:
        return f", {self.failed} failed" if self.failed else ""

    def __enter__(self) -> "ClipProgress[Result]":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
