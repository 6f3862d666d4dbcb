"""Sends large inputs through memory shared with a Triton on this machine. Regions are registered once and reused.

Triton's extension: docs/protocol/extension_shared_memory.md of triton-inference-server/server.
"""

import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import tenacity
from tritonclient.utils import InferenceServerException

from asl_triton.errors import AslTritonError, ServerError
from asl_triton.transport.base import Array, ModelDescription, SharedArray, TransportDecorator
from asl_triton.transport.endpoints import Endpoints
from asl_triton.transport.error_mapping import get_message, get_status, is_retryable, translate_error
from asl_triton.transport.shm_region import Region, is_stale, key_headers, size_for, unlink_stale_regions
from asl_triton.transport.triton_grpc import GrpcTransport

Sharing = Literal["auto", "grpc", "shm"]

LEAST_BYTES = 64 * 1024  # of an array; smaller ones are as fast in the message
MOST_LOSSES = 3  # per request; a restarted server loses a request's region once
MAX_REFUSALS = 3  # by a server that answers requests; one that does not may still be starting
REGISTER_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0  # to unregister all regions
REPLACE_TIMEOUT_S = 0.5  # to unregister one before creating a larger one, as there may not be room for both
UNREGISTER_TIMEOUT_S = 120.0  # longer than a request waits in the queue
# The first version in which unregistering waits for requests that read the region (its pull requests 7567 and 7743).
OLDEST = (2, 51)
INSTEAD = "or leave out --transport shm"

log = logging.getLogger(__name__)


class SharedMemoryTransport(TransportDecorator):
    """Sends large inputs through shared memory, and everything else as `transport` does.

    Without shared memory, inputs are sent in the message, unless shared memory is `required`. A region whose request
    was abandoned is unregistered instead of reused, since the server may still be reading it. The first request
    unregisters the regions of killed clients.
    """

    transport: GrpcTransport

    def __init__(self, transport: GrpcTransport, *, required: bool = False) -> None:
        super().__init__(transport)
        self._required = required
        self._slots = asyncio.Semaphore(transport.in_flight)  # limits the number of regions to that of requests
        self._free: list[Region] = []
        self._registering = asyncio.Lock()
        self._is_checked = self._is_open = False
        self._is_disabled = False
        self._last_refusal = ""  # why a region was refused, if the reason may be temporary
        self._refusals = 0
        self._unregistering: dict[str, asyncio.Task[None]] = {}

    async def describe(self, model: str) -> ModelDescription:
        """Return what the server says about a model. Raises `ServerError` if it refuses regions that are required."""
        description = await self.transport.describe(model)
        if self._required and not self._free and (region := await self._acquire(1)):
            self._free.append(region)
        return description

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        large = {name: array for name, array in inputs.items() if is_worth_sharing(array)}
        if not large or self._is_disabled:
            return await self.transport.infer(model, inputs, outputs, priority, parameters)
        async with self._slots:
            for losses in range(MOST_LOSSES):
                region = await self._acquire(size_for(large), fresh=losses > 0)
                if region is None:
                    break
                abandoned, is_lost = self.transport.retries.abandoned, False
                try:
                    shared: dict[str, Array | SharedArray] = {**inputs, **region.write(large)}
                    return await self.transport.infer(model, shared, outputs, priority, parameters)
                except AslTritonError as exc:
                    is_lost = region.name in str(exc)  # the server was restarted
                    if not is_lost:
                        raise
                finally:
                    self._release(region, is_lost=is_lost, may_be_read=self.transport.retries.abandoned != abandoned)
            else:
                self._disable("it keeps losing the regions")
            answer = await self.transport.infer(model, inputs, outputs, priority, parameters)
            self._count_answer_without_region()
            return answer

    async def close(self) -> None:
        """Unregister all regions, for up to `CLOSE_TIMEOUT_S` in case the server is gone, and close the connection."""
        for region in self._free:
            region.close()
        names = {region.name for region in self._free} | set(self._unregistering)
        for task in self._unregistering.values():
            task.cancel()
        self._is_open = False
        self._free.clear()
        self._unregistering.clear()
        if names:
            tasks = [asyncio.create_task(self._unregister(name)) for name in names]
            _, late = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.transport.close()

    async def _acquire(self, size: int, fresh: bool = False) -> Region | None:
        """Return a registered region of `size` bytes or more, or None if there is none and it is not required.

        `fresh` registers a new one for this request, because a server that lost one region may have lost all.

        Raises:
            ServerError: there is none, and shared memory is required.
        """
        async with self._registering:  # the first request checks the server for all of them
            if self._is_disabled:
                return None
            fitting = [] if fresh else [region for region in self._free if region.size >= size]
            if fitting:
                region = min(fitting, key=lambda region: region.size)
                self._free.remove(region)
                return region
            return await self._register(size)

    def _release(self, region: Region, *, is_lost: bool, may_be_read: bool) -> None:
        """Keep a region for later requests, unless the server has lost it or may still be reading it."""
        if self._is_open and not (is_lost or may_be_read):
            self._free.append(region)
            return
        region.close()
        if self._is_open and not is_lost:
            self._start_unregistering(region.name)

    async def _register(self, size: int) -> Region | None:
        """Register a new region. It replaces a free one that is too small."""
        if self._free:
            smaller = self._free.pop()
            smaller.close()
            await asyncio.wait([self._start_unregistering(smaller.name)], timeout=REPLACE_TIMEOUT_S)
        client = await self.transport.connect()
        try:
            if not self._is_checked and not await self._check_server(client):
                return None
            region = Region(size)
        except InferenceServerException as exc:
            self._handle_refusal(exc)
            return None
        except OSError as exc:
            self._handle_full_memory(size, exc)
            return None
        try:
            await self._call(client.register_system_shared_memory, region.name, region.key, region.size)
        except InferenceServerException as exc:
            region.close()
            self._handle_refusal(exc)
            return None
        except asyncio.CancelledError:
            region.close()
            self._start_unregistering(region.name)  # the server may have registered it
            raise
        finally:
            region.unlink()
        self._is_open, self._last_refusal, self._refusals = True, "", 0
        return region

    async def _check_server(self, client: Any) -> bool:
        """Whether regions may be registered with the server. Unregisters those of processes that have ended."""
        version = (await self._call(client.get_server_metadata)).version
        status = await self._call(client.get_system_shared_memory_status)
        if is_too_old(version):
            self._disable(f"Triton {version} may crash if a region is unregistered while it is being read")
            return False
        unlink_stale_regions()
        for name in filter(is_stale, status.regions):
            self._start_unregistering(name)
        self._is_checked = True
        return True

    def _disable(self, reason: str) -> None:
        """Stop using regions.

        Raises:
            ServerError: shared memory is required.
        """
        refusal = (
            f"{self.address} does not accept requests through shared memory ({reason}): allow it (asl-triton serve "
            "--shared-memory, tritonserver --allow-client-shm=true) and share /dev/shm with this machine (docker run "
            f"--ipc=host), {INSTEAD}"
        )
        if self._required:
            raise ServerError(refusal)
        self._is_disabled = True
        log.debug("%s", refusal)

    def _handle_refusal(self, exc: InferenceServerException) -> None:
        """Handle a refused region: disable regions for good, or only for this request if the server may be down."""
        if not is_retryable(exc) and get_status(exc) != "DEADLINE_EXCEEDED":
            self._disable(get_message(exc))
        elif self._required:
            raise translate_error(exc, self.address, "", REGISTER_TIMEOUT_S, security=self.transport.security) from exc
        else:
            self._last_refusal = get_message(exc)
            log.debug("%s did not accept a region: %s", self.address, self._last_refusal)

    def _handle_full_memory(self, size: int, exc: OSError) -> None:
        """Send this request without a region. A smaller or a later one may get one."""
        said = f"/dev/shm has no room for a request of {size:,} bytes ({exc.strerror}): enlarge it, {INSTEAD}"
        if self._required:
            raise ServerError(said) from exc
        log.debug("%s", said)

    def _count_answer_without_region(self) -> None:
        """Disable regions for a server that answers requests but repeatedly refuses regions."""
        if self._last_refusal:
            self._refusals += 1
            if self._refusals == MAX_REFUSALS:
                self._disable(self._last_refusal)
            self._last_refusal = ""

    def _start_unregistering(self, name: str) -> "asyncio.Task[None]":
        """Unregister a region in the background as soon as the server no longer uses it."""
        task = asyncio.create_task(self._unregister(name))
        self._unregistering[name] = task
        task.add_done_callback(lambda _: self._unregistering.pop(name, None))
        return task

    async def _unregister(self, name: str) -> None:
        """Unregister a region, and retry while the server uses it (later versions wait by themselves)."""
        client = await self.transport.connect()
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda exc: "in use" in str(exc)),
            wait=tenacity.wait_exponential(0.1, max=5.0),
            stop=tenacity.stop_after_delay(UNREGISTER_TIMEOUT_S),
            reraise=True,
        )
        with suppress(InferenceServerException):
            await retrying(client.unregister_system_shared_memory, name, **self._call_options())

    async def _call(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Make one call about regions. Retry only if they are required."""
        ask = partial(call, *arguments, **self._call_options())
        return await self.transport.retries.run(ask, again=self._required)

    def _call_options(self) -> dict[str, Any]:
        key = key_headers(self.address) if self.transport.addresses.are_on_this_machine else {}
        return {"client_timeout": REGISTER_TIMEOUT_S, "headers": {**self.transport.security.headers, **key} or None}


def is_worth_sharing(array: Array) -> bool:
    """Whether an array is numeric and large enough for shared memory."""
    return array.dtype.kind in "biuf" and array.nbytes >= LEAST_BYTES


def is_too_old(version: str) -> bool:
    """Whether shared memory is unsafe with this version of Triton."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST


def unavailable_reason(sharing: Sharing, addresses: Endpoints) -> str:
    """Explain why shared memory is unavailable, without contacting a server. Returns "" if it is worth trying."""
    if sys.platform != "linux":
        return f"shared memory is supported only on Linux: use another machine, {INSTEAD}"
    if addresses.are_listed or addresses.text.startswith("dns:"):
        return f"shared memory needs one server, and {addresses.text} may be several: name a local one, {INSTEAD}"
    if sharing == "auto" and not addresses.are_on_this_machine:
        return "on another machine"
    return ""
