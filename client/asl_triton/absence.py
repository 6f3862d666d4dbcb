"""A server that went away while clips are under way, and waiting for it: once for all of them."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import tenacity

from asl_triton.contract import ServedModel
from asl_triton.errors import AslTritonError, ContractError, ServerError
from asl_triton.recognizer import AsyncRecognizer

# Random, so that many clients do not come back at one moment (Brooker 2015, "Exponential backoff and jitter").
calmly = tenacity.wait_random_exponential(multiplier=0.5, min=0.1, max=5.0)


class Absence:
    """Waits up to `wait_s` for the server of a recognizer to answer again, unless `stopping` is set meanwhile.

    `say` is told in a sentence when the waiting begins and ends.
    """

    def __init__(
        self, recognizer: AsyncRecognizer, wait_s: float, stopping: asyncio.Event, say: Callable[[str], None]
    ) -> None:
        self.wait_s = wait_s
        self.stopping = stopping
        self._recognizer, self._say = recognizer, say
        self._waiting = asyncio.Lock()
        self._served: ServedModel | None = None

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
            await self._recognizer.transport.describe((await self._recognizer.model()).name)
        except AslTritonError:
            return True
        return False

    async def end(self, cause: AslTritonError) -> None:
        """Return when the server answers again; the first who comes here waits, the others for it.

        Raises:
            ServerError: it was away for too long. ContractError: it came back with another recogniser.
        """
        served = await self._recognizer.model()
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
            if returned.identity != served.identity:
                raise ContractError(
                    f"{address} came back with another {served.name}, of other weights, precision or labels: the "
                    "results would be of both. Run the same command again, which begins anew"
                )
            self._say(f"{address} is back after {time.monotonic() - began_s:.0f} s")
