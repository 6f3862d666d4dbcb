"""The clips that are being recognized or are waiting: one bounded queue for all visitors and tabs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gradio.context import LocalContext

from asl_triton.errors import ServerError


def find_visitor(request: Any, username: str | None) -> str:
    """Return the login that sent a request, or else the address it came from."""
    return username or (request.client.host if request is not None and request.client else "")


class Ticket:
    """A place in the queue for the visitor whose event is being handled."""

    def __init__(self) -> None:
        request = LocalContext.request.get(None)
        self.visitor = find_visitor(request, getattr(request, "username", None))


class RequestQueue:
    """Runs up to `at_once` clips together, with up to `waiting` more in the queue. Use it in one event loop.

    One visitor can take at most half of the places in the queue, so nobody can lock out the others.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._most = waiting
        self._most_per_visitor = max(1, waiting // 2)
        self._waiting: list[Ticket] = []

    def ahead(self, ticket: Ticket) -> int | None:
        """Return how many tickets are ahead of this one, or None if it is not waiting."""
        return self._waiting.index(ticket) if ticket in self._waiting else None

    @asynccontextmanager
    async def wait_for_turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a turn and hold it for the duration of the block.

        Raises:
            ServerError: the queue is full, or this visitor's share of it is.
        """
        if self._free.locked():
            if len(self._waiting) >= self._most:
                raise ServerError(
                    f"the page is busy, with {len(self._waiting)} requests waiting already: try again in a minute"
                )
            if sum(other.visitor == ticket.visitor for other in self._waiting) >= self._most_per_visitor:
                raise ServerError(
                    f"{self._most_per_visitor} of your clips are waiting already: try again when some are done"
                )
        self._waiting.append(ticket)
        try:
            await self._free.acquire()
        finally:
            self._waiting.remove(ticket)
        try:
            yield
        finally:
            self._free.release()
