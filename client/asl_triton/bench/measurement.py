"""Loads measured one after another: warm-up apart, then windows until three in a row agree."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from asl_triton.bench.load import ClosedLoop, Loop, Request, Run, cancelled
from asl_triton.bench.sources import Source, Traffic
from asl_triton.errors import AslTritonError
from asl_triton.models.served import ServedModel
from asl_triton.transport.base import Statistics

AGREEING = 3  # windows in a row, as perf_analyzer wants
ANSWERS_A_WINDOW = 10
ANSWERS_EACH = 4  # for each clip in flight of a closed loop: answers come a batch at a time
POLL_S = 0.02


@dataclass(frozen=True)
class Rules:
    """How long to measure: windows of `window_s` seconds or more, until three agree within `stable` (a share).

    The defaults are perf_analyzer's.
    """

    window_s: float = 5.0
    warm_up_s: float = 1.0
    stable: float = 0.10
    max_windows: int = 10


@dataclass(frozen=True)
class Window:
    """The requests that ended in a stretch of time, and what the server and the connection counted meanwhile.

    `client_busy` is the share of the time in which this process's event loop did not wait but compute.
    """

    seconds: float
    requests: tuple[Request, ...]
    not_started: int
    server: Statistics
    traffic: Traffic
    client_busy: float

    @property
    def latencies_s(self) -> list[float]:
        """Of the requests that were answered."""
        return [request.latency_s for request in self.requests if request.error is None]

    @property
    def throughput(self) -> float:
        """Clips answered a second."""
        return len(self.latencies_s) / self.seconds


@dataclass(frozen=True)
class Level:
    """One load, measured. `windows` are all there were; `errors` counts those of the whole level by their reason."""

    loop: Loop
    windows: tuple[Window, ...]
    stable: bool
    errors: Mapping[str, int]

    @property
    def measured(self) -> tuple[Window, ...]:
        """The windows that figures are of: the last three."""
        return self.windows[-AGREEING:]


@dataclass(frozen=True)
class Measured:
    """Loads that were put on a model. `stopped` says why it ended before the last, if it did."""

    model: ServedModel
    what: str
    levels: tuple[Level, ...]
    stopped: str | None = None


def agree(windows: Sequence[Window], stable: float) -> bool:
    """Whether the last three windows are alike: the greatest throughput and the greatest mean latency are at most
    `stable` (a share) above the least. As perf_analyzer's --stability-percentage."""
    last = windows[-AGREEING:]
    if len(last) < AGREEING or not all(window.latencies_s for window in last):
        return False
    throughputs = [window.throughput for window in last]
    latencies_s = [sum(window.latencies_s) / len(window.latencies_s) for window in last]
    return all(max(values) <= min(values) * (1 + stable) for values in (throughputs, latencies_s))


@dataclass(frozen=True)
class Counters:
    """All that counts on while requests are under way; the busy seconds are this thread's."""

    server: Statistics
    traffic: Traffic
    wall_s: float
    busy_s: float

    @classmethod
    async def read(cls, source: Source) -> "Counters":
        """As they are now."""
        traffic, wall_s, busy_s = source.traffic, time.perf_counter(), time.thread_time()  # before anything goes on
        return cls(await source.statistics(), traffic, wall_s, busy_s)


class Meter:
    """Cuts a run into windows, each beginning where the one before ended."""

    def __init__(self, run: Run, driving: "asyncio.Task[None]", source: Source, counters: Counters) -> None:
        self._run = run
        self._driving = driving
        self._source = source
        self._counters = counters
        self._began_s = run.clock()

    async def window(self, seconds: float, answers: int) -> Window:
        """The next window: it ends at an answer, after so many seconds and so many answers, or where there are none."""
        run, before = self._run, self._counters
        while (
            run.clock() < self._began_s + seconds
            or not run.ended
            or (len(run.ended) < answers and any(request.error is None for request in run.ended))
        ):
            await asyncio.wait({self._driving}, timeout=POLL_S)
            if self._driving.done():
                self._driving.result()
        requests, run.ended = tuple(run.ended), []
        not_started, run.not_started = run.not_started, 0
        self._counters = after = await Counters.read(self._source)
        began_s, self._began_s = self._began_s, requests[-1].ended_s
        return Window(
            seconds=self._began_s - began_s,
            requests=requests,
            not_started=not_started,
            server=difference(after.server, before.server),
            traffic=difference(after.traffic, before.traffic),
            client_busy=(after.busy_s - before.busy_s) / (after.wall_s - before.wall_s),
        )


async def measure(
    loop: Loop,
    source: Source,
    rules: Rules,
    on_window: Callable[[Level], None] = lambda level: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Level:
    """Put one load on a server and measure it; `on_window` sees the level after each window.

    The measuring ends early where nothing is answered any more. All that is under way is waited for, so that the next
    level meets an idle server.

    Raises:
        AslTritonError: the server does not tell its statistics.
    """
    run = Run(source.send, clock)
    windows: list[Window] = []

    def level() -> Level:
        return Level(loop, tuple(windows), agree(windows, rules.stable), dict(run.errors))

    at_once = loop.in_flight if isinstance(loop, ClosedLoop) else 1
    answers = max(ANSWERS_A_WINDOW, ANSWERS_EACH * at_once)
    counters = await Counters.read(source)
    driving = asyncio.create_task(loop.drive(run))
    try:
        meter = Meter(run, driving, source, counters)
        window = await meter.window(rules.warm_up_s, at_once)
        while window.latencies_s and len(windows) < rules.max_windows and not level().stable:
            window = await meter.window(rules.window_s, answers)
            windows.append(window)
            on_window(level())
        run.stopping.set()
        await driving
    finally:
        await cancelled({driving})
    return level()


def measure_all(
    make_source: Callable[[], AbstractAsyncContextManager[Source]],
    loops: Sequence[Loop],
    rules: Rules,
    on_window: Callable[[Level], None] = lambda level: None,
) -> Measured:
    """Put one load after another on a server; `on_window` sees the level under way after each window.

    Where the server goes away, answers nothing any more, or Ctrl-C comes, what is known is returned.

    Raises:
        AslTritonError: the server or its model cannot be used, or nothing was answered.
        KeyboardInterrupt: Ctrl-C before the first window ended.
    """
    known: dict[Loop, Level] = {}
    asked: list[Source] = []

    def keep(level: Level) -> None:
        known[level.loop] = level
        on_window(level)

    async def run() -> None:
        async with make_source() as source:
            asked.append(source)
            for loop in loops:
                level = await measure(loop, source, rules, keep)
                if not (level.windows and level.windows[-1].latencies_s):
                    raise AslTritonError(f"no clip was answered with {loop.label}: {' and '.join(level.errors)}")
                known[loop] = level

    stopped = None
    try:
        asyncio.run(run())
    except (AslTritonError, KeyboardInterrupt) as exc:
        if not any(window.latencies_s for level in known.values() for window in level.measured):
            raise
        stopped = str(exc) or "interrupted"
    return Measured(asked[0].model, asked[0].what, tuple(known.values()), stopped)


AnyCounts = TypeVar("AnyCounts", Statistics, Traffic)


def difference(after: AnyCounts, before: AnyCounts) -> AnyCounts:
    """What was counted between two readings."""
    counts = {f.name: getattr(after, f.name) - getattr(before, f.name) for f in dataclasses.fields(after)}
    return type(after)(**counts)
