"""Whether a connection is still the one that it was: behind a new one may be another server."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc


class Connectivity:
    """Counts in `changes` what becomes of a gRPC channel's connections, from `watch` on until it is closed.

    gRPC connects anew by itself: where nothing was under way, no request tells of it.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._watching: asyncio.Task[None] | None = None

    def watch(self, channel: grpc.aio.Channel) -> None:
        """Begin to count, where that has not begun."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._count(channel))

    async def _count(self, channel: Any) -> None:
        state = channel.get_state()
        with suppress(grpc.aio.UsageError):  # it is closed
            while True:
                await channel.wait_for_state_change(state)
                state = channel.get_state()
                self.changes += 1

    async def close(self) -> None:
        """Count no longer."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
