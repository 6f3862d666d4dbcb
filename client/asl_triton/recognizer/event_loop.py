"""The event loop behind the sync faces: one a process, in a thread of its own. gRPC's asyncio does not bear several."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def background_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all sync faces, in a daemon thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="asl-triton", daemon=True).start()
    return loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop, and wait for it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C among them: nothing goes on behind the caller's back
        future.cancel()
        raise


def iterate(items: AsyncGenerator[T, None]) -> Iterator[T]:
    """The items of an asynchronous generator, each made on the background loop when it is asked for.

    Leaving early, by `close` or by letting go of it, closes the generator.
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
