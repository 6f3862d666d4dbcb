"""Handles server outages during a run: waits for the server, once for all clips, and verifies its model."""

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress

from asl_triton.errors import AslTritonError, ContractError, ServerError
from asl_triton.models.served import ServedModel
from asl_triton.recognizer.async_client import AsyncRecognizer

VERIFY_EVERY_S = 10.0


def backoff_s(attempt: int) -> float:
    """Seconds to wait before another attempt, random so that many clients do not return at the same moment.

    Exponential backoff with full jitter (Brooker 2015, "Exponential backoff and jitter").
    """
    return random.uniform(0.1, min(0.5 * 2**attempt, 5.0))


class ModelChangedError(ContractError):
    """The server now serves another model under the same name."""


class OutageMonitor:
    """Checks that all results come from one model, and waits up to `wait_s` for its server to come back.

    Waiting ends early when `stopping` is set. `say` gets a sentence when the wait starts and ends.
    """

    def __init__(
        self, recognizer: AsyncRecognizer, wait_s: float, stopping: asyncio.Event, say: Callable[[str], None]
    ) -> None:
        self._recognizer, self._wait_s, self._stopping, self._say = recognizer, wait_s, stopping, say
        self._waiting = asyncio.Lock()
        self._served: ServedModel
        self._back_s = -math.inf  # when the last outage ended; infinite during one
        self._verified_epoch = 0
        self._verified_s = 0.0

    async def start(self) -> None:
        """Remember the model that is served now.

        Raises:
            ServerError, ContractError, LabelsError: the model could not be read.
        """
        transport = self._recognizer.transport
        await transport.watch()
        self._served = await self._recognizer.model()
        for address in await transport.find_unreachable():
            self._say(f"{address} does not answer: continuing with the other servers until it is back")
        self._verified_epoch, self._verified_s = transport.connection_epoch, time.monotonic()

    async def verify_same_model(self, *, force: bool = False) -> None:
        """Verify that answers still come from that model.

        Asks the server only after a reconnection or a retried request, every ten seconds, or if `force` is set.

        Raises:
            ModelChangedError: the model is a different one. AslTritonError: the server did not answer.
        """
        epoch, now_s = self._recognizer.transport.connection_epoch, time.monotonic()
        if force or epoch > self._verified_epoch or now_s - self._verified_s > VERIFY_EVERY_S:
            described = await self._recognizer.transport.describe(self._served.name)
            if not self._served.is_described_by(described):
                raise self._changed_error()
            self._verified_epoch, self._verified_s = max(epoch, self._verified_epoch), now_s

    async def sleep(self, seconds: float) -> None:
        """Sleep, or return at once when the run stops."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def is_gone(self) -> bool:
        """Return whether the server no longer answers, or no longer has the model (as when it shuts down)."""
        try:
            await self._recognizer.transport.server_version()
            await self._recognizer.transport.describe(self._served.name)
        except AslTritonError:
            return True
        return False

    def was_gone_since(self, moment_s: float) -> bool:
        """Return whether there was an outage at or after `moment_s`, a time of `time.monotonic`."""
        return self._back_s >= moment_s

    async def wait_until_back(self, cause: AslTritonError) -> None:
        """Wait until the server answers again. Concurrent callers share one wait.

        Raises:
            ServerError: it was down for too long. ModelChangedError: it came back with a different model.
        """
        async with self._waiting:
            if not await self.is_gone():
                return
            if self._wait_s <= 0:
                raise ServerError(f"the server went away or unloaded its model: {cause}") from cause
            address, began_s = self._recognizer.transport.address, time.monotonic()
            self._back_s = math.inf
            self._say(f"{address} is down: waiting up to {self._wait_s:g} s for it (--wait)")
            attempt = 0
            while True:
                try:
                    served = await self._recognizer.model(again=True)
                    break
                except AslTritonError as exc:
                    away_s = time.monotonic() - began_s
                    if away_s >= self._wait_s or self._stopping.is_set():
                        raise ServerError(
                            f"the server went away and was not back after {away_s:.0f} s (--wait): {exc}"
                        ) from cause
                await self.sleep(backoff_s(attempt))
                attempt += 1
            if served.identity != self._served.identity:
                raise self._changed_error()
            self._back_s = time.monotonic()
            self._say(f"{address} is back after {self._back_s - began_s:.0f} s")

    def _changed_error(self) -> ModelChangedError:
        return ModelChangedError(
            f"{self._recognizer.transport.address} came back with a different {self._served.name} (other weights, "
            "precision or labels), so the results would mix both. Run the same command again to start over"
        )
