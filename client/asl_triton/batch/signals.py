"""Ctrl-C and SIGTERM during a long run: the first asks to finish, the second stops at once."""

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
    """A `with` block in which Ctrl-C and SIGTERM request a stop instead of ending the process.

    The first one calls `on_first` with its name. The second one raises ForcedStop, or, inside `guard_task`, cancels
    that task. Outside the main thread, signals are handled as usual.
    """

    def __init__(self, on_first: Callable[[str], None]) -> None:
        self._on_first = on_first
        self.is_requested = self._is_forced = False
        self._previous: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stopping = asyncio.Event()

    def __enter__(self) -> "GracefulShutdown":
        for number in SIGNALS:
            with suppress(ValueError):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)

    @contextmanager
    def guard_task(self) -> Iterator[asyncio.Event]:
        """Yield the event that the first signal sets, to a block in a coroutine.

        Raises:
            KeyboardInterrupt: after the block, if the event was set. ForcedStop: a second signal cancelled the block.
        """
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.is_requested:
            self._stopping.set()
        try:
            yield self._stopping
        except asyncio.CancelledError:
            if self._is_forced:
                raise ForcedStop from None
            raise
        finally:
            self._loop = self._task = None
        if self._stopping.is_set():
            raise KeyboardInterrupt("interrupted")

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._loop is not None:  # the loop may be asleep
            self._loop.call_soon_threadsafe(self._handle, number)
        else:
            self._handle(number)

    def _handle(self, number: int) -> None:
        if not self.is_requested:
            self.is_requested = True
            self._stopping.set()
            self._on_first(signal.Signals(number).name)
        elif self._task is None:
            raise ForcedStop
        else:
            self._is_forced = True
            self._task.cancel()
