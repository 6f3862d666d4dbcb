"""Load on a server: so many clips always in flight (closed loop), or so many due a second (open loop)."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from asl_triton.errors import AslTritonError

Arrivals = Literal["constant", "poisson"]

FAILURE_PAUSE_S = 0.1  # in the closed loop: a server that refuses at once is not flooded
REQUEST_ID = re.compile(r" \(request [0-9a-f]+\)")


@dataclass(frozen=True)
class Request:
    """One clip that was asked about, and the reason why it failed, if it did. Times are the clock's, in seconds."""

    due_s: float
    started_s: float
    ended_s: float
    error: str | None = None

    @property
    def latency_s(self) -> float:
        """From when it was due, so that a caller's wait counts also where the start was late."""
        return self.ended_s - self.due_s


@dataclass
class Run:
    """A load under way: asks with `send`, and keeps what became of each request.

    `errors` counts reasons from the first request to the last; `ended` and `not_started` may be emptied meanwhile.
    """

    send: Callable[[], Awaitable[object]]
    clock: Callable[[], float]
    ended: list[Request] = field(default_factory=list)
    not_started: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, due_s: float) -> bool:
        """Ask about one clip; returns whether it was answered."""
        started_s, error = self.clock(), None
        try:
            await self.send()
        except AslTritonError as exc:
            error = reason(exc)
            self.errors[error] += 1
        self.ended.append(Request(due_s, started_s, self.clock(), error))
        return error is None


@dataclass(frozen=True)
class ClosedLoop:
    """`in_flight` clips are always under way: the next one starts when one is answered."""

    in_flight: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.in_flight} in flight"

    async def drive(self, run: Run) -> None:
        """Ask until the run is stopping; returns when the last one is answered."""

        async def work() -> None:
            while not run.stopping.is_set():
                if not await run.ask(run.clock()):
                    await asyncio.sleep(FAILURE_PAUSE_S)

        workers = {asyncio.create_task(work()) for _ in range(self.in_flight)}
        try:
            await asyncio.gather(*workers)
        finally:
            await cancelled(workers)


@dataclass(frozen=True)
class OpenLoop:
    """`rate` clips are due a second, at equal distances or as a Poisson process, however late the earlier ones are.

    So do callers behave that know nothing of each other. Latency counts from when a clip was due: a slow answer hides
    none of those behind it ("coordinated omission", Gil Tene, "How NOT to Measure Latency", 2013). A clip that is due
    while `in_flight` are under way is not started, and counted as such.
    """

    rate: float
    arrivals: Arrivals = "constant"
    in_flight: int = 32

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.rate:g} a second"

    def gaps_s(self) -> Iterator[float]:
        """Seconds from each request to the next; the same ones each time."""
        draw = random.Random(0)
        while True:
            yield draw.expovariate(self.rate) if self.arrivals == "poisson" else 1 / self.rate

    async def drive(self, run: Run) -> None:
        """Ask until the run is stopping; returns when the last one is answered."""
        stopping: asyncio.Task[Any] = asyncio.create_task(run.stopping.wait())
        under_way: set[asyncio.Task[Any]] = set()
        due_s = run.clock()
        try:
            for gap_s in self.gaps_s():
                due_s += gap_s
                if (await asyncio.wait({stopping}, timeout=max(due_s - run.clock(), 0)))[0]:
                    break
                for task in [task for task in under_way if task.done()]:
                    under_way.remove(task)
                    task.result()
                if len(under_way) < self.in_flight:
                    under_way.add(asyncio.create_task(run.ask(due_s)))
                else:
                    run.not_started += 1
            await asyncio.gather(*under_way)
        finally:
            await cancelled({stopping, *under_way})


Loop = ClosedLoop | OpenLoop


async def cancelled(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def reason(exc: AslTritonError) -> str:
    """The first sentence of an error, without what is particular to one request."""
    return REQUEST_ID.sub("", str(exc)).split(". ")[0]
