"""Load on a server: a fixed number of clips in flight (closed loop), or a fixed rate of clips (open loop)."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from asl_triton.errors import AslTritonError

Arrivals = Literal["constant", "poisson"]

FAILURE_PAUSE_S = 0.1  # in the closed loop, so as not to flood a server that refuses at once
REQUEST_ID = re.compile(r" \(request [0-9a-f]+\)")


@dataclass(frozen=True)
class ClosedLoop:
    """Keeps `in_flight` clips in flight: whenever one is answered, the next one starts."""

    in_flight: int

    def __str__(self) -> str:
        return f"{self.in_flight} in flight"


@dataclass(frozen=True)
class OpenLoop:
    """Makes `rate` clips due per second, evenly spaced or as a Poisson process, however late the earlier ones are.

    Independent callers behave like this. Latency counts from when a clip was due, so that a slow answer does not hide
    the wait of those behind it ("coordinated omission", Gil Tene, "How NOT to Measure Latency", 2013). If `in_flight`
    clips are already in flight when a clip is due, it is counted as not started.
    """

    rate: float
    arrivals: Arrivals = "constant"
    in_flight: int = 32

    def __str__(self) -> str:
        return f"{self.rate:g} per second"


Loop = ClosedLoop | OpenLoop


@dataclass(frozen=True)
class Request:
    """One clip that was sent, and why it failed, if it did. Times are in seconds, by the clock of `Load`."""

    due_s: float
    started_s: float
    ended_s: float
    error: str | None = None

    @property
    def latency_s(self) -> float:
        """Seconds from when the clip was due, so that a late start counts as waiting."""
        return self.ended_s - self.due_s


class Load:
    """Calls `send` at the pace of a loop until `stopping` is set, and records each request.

    `errors` counts the reasons for failures from the first request to the last. `ended` and `not_started` may be reset
    during the run.
    """

    def __init__(
        self, loop: Loop, send: Callable[[], Awaitable[object]], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.loop = loop
        self.send = send
        self.clock = clock
        self.ended: list[Request] = []
        self.not_started = 0
        self.errors: Counter[str] = Counter()
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Send requests until `stopping` is set. Returns when the last one has ended."""
        tasks: set[asyncio.Task[Any]] = set()
        try:
            if isinstance(self.loop, ClosedLoop):
                tasks.update(asyncio.create_task(self._send_one_by_one()) for _ in range(self.loop.in_flight))
            else:
                await self._send_when_due(self.loop, tasks)
            await asyncio.gather(*tasks)
        finally:
            await cancel(*tasks)

    async def _send_one_by_one(self) -> None:
        while not self.stopping.is_set():
            if not await self._send(self.clock()):
                await asyncio.sleep(FAILURE_PAUSE_S)

    async def _send_when_due(self, loop: OpenLoop, tasks: set[asyncio.Task[Any]]) -> None:
        due_s, draw = self.clock(), random.Random(0)  # the same arrivals each time
        while True:
            due_s += draw.expovariate(loop.rate) if loop.arrivals == "poisson" else 1 / loop.rate
            try:
                await asyncio.wait_for(self.stopping.wait(), max(due_s - self.clock(), 0))
                return
            except asyncio.TimeoutError:  # it is due
                pass
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                task.result()
            if len(tasks) < loop.in_flight:
                tasks.add(asyncio.create_task(self._send(due_s)))
            else:
                self.not_started += 1

    async def _send(self, due_s: float) -> bool:
        """Send one request. Returns whether it was answered."""
        started_s, error = self.clock(), None
        try:
            await self.send()
        except AslTritonError as exc:
            error = summarize_error(exc)
            self.errors[error] += 1
        self.ended.append(Request(due_s, started_s, self.clock(), error))
        return error is None


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def summarize_error(exc: AslTritonError) -> str:
    """Return the first sentence of an error, without the request ID."""
    return REQUEST_ID.sub("", str(exc)).split(". ")[0]
