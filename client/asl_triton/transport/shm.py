"""Memory that a Triton on this machine reads requests from: registered with it once, lent to one request at a time.

Triton's extension for that: docs/protocol/extension_shared_memory.md of triton-inference-server/server. Whatever cannot
go this way goes in the message, unless this way was insisted on.
"""

import asyncio
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import tenacity
from tritonclient.utils import InferenceServerException

from asl_triton.errors import ServerError
from asl_triton.transport.endpoints import Endpoints
from asl_triton.transport.error_mapping import get_status, is_retryable
from asl_triton.transport.shm_key import key_headers
from asl_triton.transport.shm_region import Region, is_stale, unlink_stale_regions

Sharing = Literal["auto", "grpc", "shm"]

PATIENCE_S = 5.0  # for a server that does not say whether it takes a region
CLOSING_S = 2.0  # for giving all back
GROWING_S = 0.5  # for giving one back before a larger one is made: there may be room for no more
# A server that answers and does so often not take a region refuses. It may have been starting before.
MOST_TURNED_AWAY = 3
# The first in which letting go of a region waits for the requests that read it (its pull requests 7567 and 7743).
OLDEST = (2, 51)
LET_GO_S = 120.0  # longer than a request waits in the queue
INSTEAD = "or leave out --transport shm"

log = logging.getLogger(__name__)


class SharedMemory:
    """The regions of one connection, each lent to one request at a time.

    `sharing` is "grpc" for none; "auto" for those that a server on this machine takes; with "shm" it is an error where
    it takes none. Its `key_headers` aside, `headers` go with every call.

    A region whose request was given up is not lent again, as the server may still read it: the server is told to let
    go of it, which it does when it can. What a killed client has left with the server goes when the next one comes.

    Raises:
        ServerError: "shm", and this machine or address cannot.
    """

    def __init__(self, sharing: Sharing, addresses: Endpoints, headers: Mapping[str, str]) -> None:
        self._sharing, self._addresses, self._headers = sharing, addresses, headers
        self._refusal = unavailable_reason(sharing, addresses)
        self._free: list[Region] = []
        self._begun = self._open = False
        self._unclear = ""  # why a region was not taken, where that may pass
        self._turned_away = 0
        self._one_by_one = asyncio.Lock()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        if sharing == "shm" and self._refusal:
            raise ServerError(self._refusal)

    async def ensure_available(self, client: Any) -> None:
        """Register a region now, if there must be one.

        Raises:
            ServerError: the server takes none. InferenceServerException: it is away.
        """
        if self._sharing == "shm" and not self._free:
            region = await self.acquire(client, 1)
            assert region is not None
            self._free.append(region)

    async def acquire(self, client: Any, size: int, fresh: bool = False) -> Region | None:
        """A region of that many bytes or more which the server has; None where requests go without.

        A `fresh` one is registered for this request: the server may have lost all others with the one before.

        Raises:
            ServerError: there must be one. InferenceServerException: likewise, and the server is away.
        """
        if self._refusal:
            return None
        region = None if fresh else self._fitting(size)
        if region is not None:
            return region
        async with self._one_by_one:  # the first finds out for all
            if self._refusal:
                return None
            return (None if fresh else self._fitting(size)) or await self._registered(client, size)

    def release(self, client: Any, region: Region) -> None:
        """Keep a region for further requests, unless it must not be written again."""
        if self._open and not region.in_doubt:
            self._free.append(region)
            return
        region.close()
        if self._open:
            self._let_go(client, region.name)

    def disable(self, said: str) -> None:
        """Register nothing from now on: the server does not want it.

        Raises:
            ServerError: it must.
        """
        refusal = (
            f"{self._addresses.text} takes no requests through shared memory ({said}): let it "
            "(tritonserver --allow-client-shm=true, from 26.04 on) and let it share /dev/shm with this machine "
            f"(docker run --ipc=host), {INSTEAD}"
        )
        if self._sharing == "shm":
            raise ServerError(refusal)
        self._refusal = refusal
        log.debug("%s", refusal)

    def answered_without(self) -> None:
        """Note that the server answered a request that went in the message: it is not away."""
        if self._unclear:
            self._turned_away += 1
            if self._turned_away == MOST_TURNED_AWAY:
                self.disable(self._unclear)
            self._unclear = ""

    async def close(self, client: Any) -> None:
        """Give all regions back; within `CLOSING_S`, as the server may be gone, and would then have let go of them."""
        for region in self._free:
            region.close()
        names = {region.name for region in self._free} | set(self._leaving)
        for task in self._leaving.values():
            task.cancel()
        self._open = False
        self._free.clear()
        self._leaving.clear()
        if names:
            tasks = [asyncio.create_task(self._unregister(client, name)) for name in names]
            _, late = await asyncio.wait(tasks, timeout=CLOSING_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _fitting(self, size: int) -> Region | None:
        """The smallest free region of that many bytes, taken out."""
        fitting = min((r for r in self._free if r.size >= size), key=lambda r: r.size, default=None)
        if fitting is not None:
            self._free.remove(fitting)
        return fitting

    async def _registered(self, client: Any, size: int) -> Region | None:
        """A new region, in the place of a free one that is too small."""
        if not self._begun and not await self._begin(client):
            return None
        if self._free:
            smaller = self._free.pop()
            smaller.close()
            await asyncio.wait([self._let_go(client, smaller.name)], timeout=GROWING_S)
        try:
            region = Region(size)
        except OSError as exc:
            self._find_no_room(size, exc)
            return None
        try:
            await client.register_system_shared_memory(region.name, region.key, region.size, **self._call())
        except InferenceServerException as exc:
            region.close()
            self._find_not_taken(exc)
            return None
        except asyncio.CancelledError:
            region.close()
            self._let_go(client, region.name)  # the server may have it
            raise
        finally:
            region.unlink()
        self._open, self._unclear, self._turned_away = True, "", 0
        return region

    async def _begin(self, client: Any) -> bool:
        """Whether the server may be given regions. It lets go of those of processes that have ended."""
        try:
            version = (await client.get_server_metadata(**self._call())).version
            status = await client.get_system_shared_memory_status(**self._call())
        except InferenceServerException as exc:
            self._find_not_taken(exc)
            return False
        if is_too_old(version):
            self.disable(f"Triton {version} may crash when it is told to let go of a region that it reads")
            return False
        unlink_stale_regions()
        for name in filter(is_stale, status.regions):
            self._let_go(client, name)
        self._begun = True
        return True

    def _find_no_room(self, size: int, exc: OSError) -> None:
        """This request has no region; a smaller or a later one may have."""
        said = f"/dev/shm has no room for a request of {size:,} bytes ({exc.strerror}): give it more, {INSTEAD}"
        if self._sharing == "shm":
            raise ServerError(said) from exc
        log.debug("%s", said)

    def _find_not_taken(self, exc: InferenceServerException) -> None:
        """The server takes no region, now or ever."""
        said = str(exc.message())
        if not is_retryable(exc) and get_status(exc) != "DEADLINE_EXCEEDED":
            self.disable(said)
        elif self._sharing == "shm":
            raise exc
        else:
            self._unclear = said
            log.debug("%s did not take a region: %s", self._addresses.text, said)

    def _let_go(self, client: Any, name: str) -> "asyncio.Task[None]":
        """Have the server let go of a region, as soon as it can."""
        task = asyncio.create_task(self._unregister(client, name))
        self._leaving[name] = task
        task.add_done_callback(lambda _: self._leaving.pop(name, None))
        return task

    async def _unregister(self, client: Any, name: str) -> None:
        """Ask until a server that has the region in use lets go; some defer it themselves."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda exc: "in use" in str(exc)),
            wait=tenacity.wait_exponential(0.1, max=5.0),
            stop=tenacity.stop_after_delay(LET_GO_S),
            reraise=True,
        )
        with suppress(InferenceServerException):
            await retrying(client.unregister_system_shared_memory, name, **self._call())

    def _call(self) -> dict[str, Any]:
        key = key_headers(self._addresses.text) if self._addresses.are_on_this_machine else {}
        headers = {**self._headers, **key}
        return {"client_timeout": PATIENCE_S, "headers": headers or None}


def is_too_old(version: str) -> bool:
    """Whether a Triton of that version is not to be trusted with shared memory."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST


def unavailable_reason(sharing: Sharing, addresses: Endpoints) -> str:
    """What is in the way of shared memory, before any server is asked; nothing where it may be tried."""
    if sharing == "grpc":
        return "not wanted"
    if sys.platform != "linux":
        return f"requests go through shared memory on Linux only: take another machine, {INSTEAD}"
    if addresses.are_listed or addresses.text.startswith("dns:"):
        return f"shared memory needs one server, and {addresses.text} may be several: name the one here, {INSTEAD}"
    if sharing == "auto" and not addresses.are_on_this_machine:
        return "on another machine"
    return ""
