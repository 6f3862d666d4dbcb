"""Ctrl-C and SIGTERM while many clips are under way: the first asks to finish, the second to stop at once."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """For the length of a `with` block in a coroutine, the two signals are requests and no deaths.

    The first sets `asked` and calls `on_first` with its name; the second cancels the task that the block is in, and
    sets `at_once`. Outside of a program's main thread, and on Windows, signals stay what they were.
    """

    def __init__(self, on_first: Callable[[str], None]) -> None:
        self.asked = asyncio.Event()
        self.at_once = False
        self._on_first = on_first
        self._before: dict[signal.Signals, Any] = {}
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> "Interruption":
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            before = signal.getsignal(number)
            with suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, self._signalled, number)
                self._before[number] = before
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for number, before in self._before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, before)

    def _signalled(self, number: signal.Signals) -> None:
        if self.asked.is_set():
            self.at_once = True
            if self._task is not None:
                self._task.cancel()
            return
        self.asked.set()
        self._on_first(number.name)
