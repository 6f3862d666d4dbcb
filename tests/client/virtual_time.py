"""An event loop whose time leaps: a sleep takes no time, and ends exactly when it was to end."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Leaping(selectors.SelectSelector):
    """Waits for nothing; the time that it was to wait has passed."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits, and nothing is going to happen"
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in a time of its own."""

    def __init__(self) -> None:
        self.leaping = Leaping()
        super().__init__(self.leaping)

    def time(self) -> float:
        return self.leaping.now_s


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def now_s() -> float:
    """The clock of the running loop."""
    return asyncio.get_running_loop().time()
