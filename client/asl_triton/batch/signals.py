"""Ctrl-C and SIGTERM while many clips are under way: the first asks to finish, the second to stop at once."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ForcedStop(KeyboardInterrupt):
    """A second Ctrl-C."""

    def __init__(self) -> None:
        super().__init__("interrupted twice: stopped at once")


class GracefulShutdown:
    """For the length of a `with` block, the two signals are requests and no deaths.

    The first sets `is_asked`, and calls `on_first` with its name. The second raises StoppedAtOnce; inside of `task` it
    cancels that task instead, and sets `at_once`. Outside of a program's main thread signals stay what they were.
    """

    def __init__(self, on_first: Callable[[str], None]) -> None:
        self.is_asked = False
        self.at_once = False
        self._on_first = on_first
        self._before: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._asked = asyncio.Event()

    def __enter__(self) -> "GracefulShutdown":
        for number in SIGNALS:
            with suppress(ValueError):
                self._before[number] = signal.signal(number, self._signaled)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    @contextmanager
    def task(self) -> Iterator[asyncio.Event]:
        """For the length of a block in a coroutine: the event that the first signal sets."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.is_asked:
            self._asked.set()
        try:
            yield self._asked
        finally:
            self._loop = self._task = None

    def _signaled(self, number: int, _frame: FrameType | None) -> None:
        if self._loop is not None:  # which may be asleep
            self._loop.call_soon_threadsafe(self._ask, number)
        else:
            self._ask(number)

    def _ask(self, number: int) -> None:
        if not self.is_asked:
            self.is_asked = True
            self._asked.set()
            self._on_first(signal.Signals(number).name)
        elif self._task is None:
            raise ForcedStop
        else:
            self.at_once = True
            self._task.cancel()
