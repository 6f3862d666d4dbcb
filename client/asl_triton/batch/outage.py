"""A server that went away while clips are under way: waiting for it, once for all, and seeing that it is the same."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import tenacity

from asl_triton.errors import AslTritonError, ContractError, ServerError
from asl_triton.models.served import ServedModel
from asl_triton.recognizer.async_client import AsyncRecognizer

# Random, so that many clients do not come back at one moment (Brooker 2015, "Exponential backoff and jitter").
calmly = tenacity.wait_random_exponential(multiplier=0.5, min=0.1, max=5.0)
CONFIRM_EVERY_S = 10.0


class ModelChangedError(ContractError):
    """Another model answers now."""


class OutageMonitor:
    """Waits up to `wait_s` for the server of a recognizer to answer again, unless `stopping` is set meanwhile.

    `say` is told in a sentence when the waiting begins and ends. `begin` remembers which model it is.
    """

    def __init__(
        self, recognizer: AsyncRecognizer, wait_s: float, stopping: asyncio.Event, say: Callable[[str], None]
    ) -> None:
        self.wait_s = wait_s
        self.stopping = stopping
        self._recognizer, self._say = recognizer, say
        self._waiting = asyncio.Lock()
        self._served: ServedModel
        self._confirmed = 0  # changes of the transport when the model was last looked at
        self._confirmed_s = 0.0

    async def begin(self) -> None:
        """Take the model that is served now for the one that all answers are to come from.

        Raises:
            ServerError, ContractError, LabelsError: there is none.
        """
        await self._recognizer.transport.watch()
        self._served = await self._recognizer.model()
        for address in await self._recognizer.transport.find_unreachable():
            self._say(
                f"{address} does not answer: the other servers are asked without it, and it joins them when it does"
            )
        self._confirmed, self._confirmed_s = self._recognizer.transport.connection_epoch, time.monotonic()

    async def verify_same_model(self, *, anyway: bool = False) -> None:
        """See to it that an answer came from that model; the server is asked if there is a reason, or `anyway`.

        A reason is a connection that was made anew, or a request that was sent again, or ten seconds.

        Raises:
            ReplacedError: it is another. AslTritonError: there was no answer.
        """
        changes, now_s = self._recognizer.transport.connection_epoch, time.monotonic()
        if anyway or changes > self._confirmed or now_s - self._confirmed_s > CONFIRM_EVERY_S:
            described = await self._recognizer.transport.describe(self._served.name)
            if not self._served.is_described_by(described):
                raise self._replaced()
            self._confirmed, self._confirmed_s = max(changes, self._confirmed), now_s

    @property
    def is_enough(self) -> tenacity.stop.stop_base:
        """When to stop trying again, as tenacity asks."""
        return tenacity.stop_after_delay(self.wait_s) | tenacity.stop_when_event_set(self.stopping)  # type: ignore[arg-type]

    async def nap(self, seconds: float) -> None:
        """Sleep, unless there is no reason to wake up again."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    async def is_gone(self) -> bool:
        """Whether the server answers no more, or no longer has the model, as one that is stopping."""
        try:
            await self._recognizer.transport.server_version()
            await self._recognizer.transport.describe(self._served.name)
        except AslTritonError:
            return True
        return False

    async def wait_until_back(self, cause: AslTritonError) -> None:
        """Return when the server answers again; the first who comes here waits, the others for it.

        Raises:
            ServerError: it was away for too long. ReplacedError: it came back with another model.
        """
        async with self._waiting:
            if not await self.is_gone():
                return
            if self.wait_s <= 0:
                raise ServerError(f"the server went away, or took its model out of service: {cause}") from cause
            address, began_s = self._recognizer.transport.address, time.monotonic()
            self._say(f"{address} is away: waiting for it, up to {self.wait_s:g} s (--wait)")
            retrying = tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(AslTritonError),
                wait=calmly,
                stop=self.is_enough,
                sleep=self.nap,
                reraise=True,
            )
            try:
                returned: ServedModel = await retrying(self._recognizer.model, again=True)
            except AslTritonError as exc:
                raise ServerError(
                    f"the server went away, and was not back after {time.monotonic() - began_s:.0f} s (--wait): {exc}"
                ) from cause
            if returned.identity != self._served.identity:
                raise self._replaced()
            self._say(f"{address} is back after {time.monotonic() - began_s:.0f} s")

    def _replaced(self) -> ModelChangedError:
        return ModelChangedError(
            f"{self._recognizer.transport.address} came back with another {self._served.name}, of other weights, "
            "precision or labels: the results would be of both. Run the same command again, which begins anew"
        )
