"""Whose clip is asked about now, and whose waits: a queue with a limit, over all visitors and tabs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asl_triton.errors import ServerError


class Ticket:
    """A visitor's place in the queue."""


class RequestQueue:
    """At most `at_once` have their turn together; at most `waiting` more wait. Of one event loop."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._most = waiting
        self._waiting: list[Ticket] = []

    def ahead(self, ticket: Ticket) -> int | None:
        """How many wait before this one; None when it waits no more."""
        return self._waiting.index(ticket) if ticket in self._waiting else None

    @asynccontextmanager
    async def wait_for_turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the block.

        Raises:
            ServerError: too many wait already.
        """
        if self._free.locked() and len(self._waiting) >= self._most:
            raise ServerError(f"the page is busy, and {len(self._waiting)} others wait already: try again in a minute")
        self._waiting.append(ticket)
        try:
            await self._free.acquire()
        finally:
            self._waiting.remove(ticket)
        try:
            yield
        finally:
            self._free.release()
