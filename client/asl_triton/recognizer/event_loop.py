"""The event loop behind the sync clients. A process has only one, because gRPC's asyncio does not support several."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def background_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all sync clients, which runs in a daemon thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="asl-triton", daemon=True).start()
    return loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop, and wait for it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C too: the coroutine must not continue in the background
        future.cancel()
        raise


def iterate(items: AsyncGenerator[T, None]) -> Iterator[T]:
    """Yield the items of an asynchronous generator, which runs on the background loop.

    Closing or dropping this iterator early closes the generator.
    """

    async def following() -> list[T]:
        async for item in items:
            return [item]
        return []

    try:
        while item := run(following()):
            yield item[0]
    finally:
        run(items.aclose())
