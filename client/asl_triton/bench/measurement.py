"""Measures loads one after another: a warm-up, then windows until three in a row agree."""

import asyncio
import itertools
import operator
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from asl_triton.bench.load import ClosedLoop, Load, Loop, Request, cancel
from asl_triton.bench.report import Figures, Latency, Report, Rules, ServerSide
from asl_triton.errors import AslTritonError
from asl_triton.models.served import FRAMES, LOGITS, ServedModel
from asl_triton.presets import INPUT_SIZE
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.transport.base import Array, Transport
from asl_triton.video.discovery import Clip

DEFAULT_FRAMES = 64
NUM_ARRAYS = 4  # of random frames, sent in rotation
AGREEING_WINDOWS = 3  # in a row, as for perf_analyzer
MIN_ANSWERS = 10  # in a window
MIN_ANSWERS_PER_CLIP_IN_FLIGHT = 4  # in a window of a closed loop, because answers arrive in batches
COUNT_TOLERANCE = 0.1  # of the requests: how much the server's count may differ from ours
POLL_S = 0.02


class Counts(NamedTuple):
    """Counters so far, or within a window.

    The first four are the server's, as in `Statistics`. `answers` and the bytes of their tensors are counted here. gRPC
    adds a few hundred bytes to each. `busy_s` is the CPU time of the event loop's thread.
    """

    requests: int
    executions: int
    queue_s: float
    compute_s: float
    answers: int
    sent_bytes: int
    received_bytes: int
    wall_s: float
    busy_s: float


@dataclass(frozen=True)
class Window:
    """The requests that ended within a window of `seconds`, with the counters for it."""

    seconds: float
    requests: tuple[Request, ...]
    not_started: int
    counts: Counts

    @property
    def latencies_s(self) -> list[float]:
        """The latencies of the answered requests, in seconds."""
        return [request.latency_s for request in self.requests if request.error is None]

    @property
    def throughput(self) -> float:
        """Clips answered per second."""
        return len(self.latencies_s) / self.seconds


@dataclass(frozen=True)
class Level:
    """The measurement of one load. `windows` has every window; `errors` counts the reasons for all failures."""

    loop: Loop
    windows: tuple[Window, ...]
    stable: bool
    errors: Mapping[str, int]

    @property
    def measured(self) -> tuple[Window, ...]:
        """The windows behind the figures: the last three."""
        return self.windows[-AGREEING_WINDOWS:]

    @property
    def has_answers(self) -> bool:
        """Whether any clip was answered."""
        return any(window.latencies_s for window in self.measured)

    def summarize(self) -> Figures:
        """Compute the figures of a level that has answers."""
        latencies_s = [latency_s for window in self.measured for latency_s in window.latencies_s]
        seconds = sum(window.seconds for window in self.measured)
        counts = Counts(*map(sum, zip(*(window.counts for window in self.measured), strict=True)))
        return Figures(
            loop=self.loop,
            stable=self.stable,
            windows=len(self.windows),
            seconds=seconds,
            answered=len(latencies_s),
            failed=sum(self.errors.values()),
            not_started=sum(window.not_started for window in self.measured),
            throughput=len(latencies_s) / seconds,
            latency_s=Latency.of(latencies_s),
            server=ServerSide(
                requests=counts.requests,
                executions=counts.executions,
                queue_s=counts.queue_s / max(counts.requests, 1),
                compute_s=counts.compute_s / max(counts.requests, 1),
                batch_size=counts.requests / max(counts.executions, 1),
            ),
            sent_bytes=counts.sent_bytes / len(latencies_s),
            received_bytes=counts.received_bytes / len(latencies_s),
            client_busy=counts.busy_s / counts.wall_s,
            counts_fit=abs(counts.requests - counts.answers) <= COUNT_TOLERANCE * counts.answers + self.loop.in_flight,
        )


class CountingTransport:
    """Wraps a transport and counts its answered inference requests."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.answers = self.sent_bytes = self.received_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], *args: Any, **kwargs: Any
    ) -> dict[str, Array]:
        answers = await self._transport.infer(model, inputs, outputs, *args, **kwargs)
        self.answers += 1
        self.sent_bytes += sum(array.nbytes for array in inputs.values())
        self.received_bytes += sum(array.nbytes for array in answers.values())
        return answers


@dataclass(frozen=True)
class Source:
    """What to send: `items` are clips, which are decoded and cropped when sent, or inputs made beforehand.

    `asked` is a description of what is sent.
    """

    model: ServedModel
    asked: str
    items: Iterator[Clip | Array]
    transport: CountingTransport
    recognizer: AsyncRecognizer

    async def send(self) -> object:
        """Send the next clip. Raises `AslTritonError` if it fails."""
        item = next(self.items)
        if isinstance(item, Clip):
            return await self.recognizer.recognize(item.path, top_k=1, name=item.name)
        return await self.transport.infer(self.model.name, {FRAMES: item}, [LOGITS])

    async def count(self) -> Counts:
        """Read all counters. Raises `AslTritonError` if the server does not report its own."""
        ours = self.transport
        now = (ours.answers, ours.sent_bytes, ours.received_bytes, time.perf_counter(), time.thread_time())
        server = await ours.statistics(self.model.name)
        return Counts(server.requests, server.executions, server.queue_s, server.compute_s, *now)


@asynccontextmanager
async def open_source(
    transport: Transport,
    model: str | None,
    *,
    clips: Sequence[Clip] = (),
    num_frames: int = DEFAULT_FRAMES,
    in_flight: int = 1,
) -> AsyncIterator[Source]:
    """Open a source of clips, at most `in_flight` at a time, or of random frames, for a model or the only one served.

    Raises:
        ServerError, ContractError, LabelsError: the server is down, or has no suitable model.
        AslTritonError: the model does not accept this many frames in one request.
    """
    counting = CountingTransport(transport)
    async with AsyncRecognizer(model=model, in_flight=in_flight, transport=cast("Transport", counting)) as recognizer:
        served = await recognizer.model()
        items: Sequence[Clip | Array] = clips or make_random_inputs(served, num_frames)
        asked = f"{num_frames} random frames per clip, as {served.datatype.lower()}"
        if clips:
            asked = f"{len(clips)} clip{'' if len(clips) == 1 else 's'}, decoded and cropped here"
        yield Source(served, asked, itertools.cycle(items), counting, recognizer)


def make_random_inputs(model: ServedModel, num_frames: int) -> list[Array]:
    """Make a few inputs of random frames. Raises `AslTritonError` if the model does not accept this many frames."""
    least, most = model.preset.min_frames, model.preset.max_frames
    if not least <= num_frames <= most:
        raise AslTritonError(
            f"{model.name} accepts {least} to {most} frames per request, not {num_frames}: change --frames"
        )
    draw = np.random.default_rng(0)
    shape = (num_frames, INPUT_SIZE, INPUT_SIZE, 3)
    return [model.make_input(draw.integers(0, 256, shape, np.uint8)) for _ in range(NUM_ARRAYS)]


def is_stable(windows: Sequence[Window], stable: float) -> bool:
    """Return whether the last three windows agree: the highest throughput and the highest mean latency are at most
    `stable` (a fraction) above the lowest, as with perf_analyzer's --stability-percentage."""
    last = windows[-AGREEING_WINDOWS:]
    if len(last) < AGREEING_WINDOWS or not all(window.latencies_s for window in last):
        return False
    throughputs = [window.throughput for window in last]
    latencies_s = [sum(window.latencies_s) / len(window.latencies_s) for window in last]
    return all(max(values) <= min(values) * (1 + stable) for values in (throughputs, latencies_s))


async def measure(
    loop: Loop,
    source: Source,
    rules: Rules,
    on_window: Callable[[Level], None] = lambda level: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Level:
    """Put one load on a server and measure it. `on_window` gets the level after each window.

    Ends early if the server stops answering. Waits for all requests in flight, so that the next level starts with an
    idle server.

    Raises:
        AslTritonError: the server does not report its statistics.
    """
    load = Load(loop, source.send, clock)
    at_once = loop.in_flight if isinstance(loop, ClosedLoop) else 1
    level = Level(loop, (), False, load.errors)
    counts, began_s = await source.count(), clock()
    running = asyncio.create_task(load.run())
    try:
        for number in range(rules.max_windows + 1):  # the first one is the warm-up
            min_seconds, min_answers = rules.warm_up_s, at_once
            if number > 0:
                min_seconds = rules.window_s
                min_answers = max(MIN_ANSWERS, MIN_ANSWERS_PER_CLIP_IN_FLIGHT * at_once)
            while (
                clock() < began_s + min_seconds
                or not load.ended
                or (len(load.ended) < min_answers and any(request.error is None for request in load.ended))
            ):
                await asyncio.wait({running}, timeout=POLL_S)
                if running.done():
                    running.result()  # raises unexpected errors
            requests, load.ended = tuple(load.ended), []
            not_started, load.not_started = load.not_started, 0
            seconds, began_s = requests[-1].ended_s - began_s, requests[-1].ended_s
            before, counts = counts, await source.count()
            window = Window(seconds, requests, not_started, Counts(*map(operator.sub, counts, before)))
            if number > 0:
                windows = (*level.windows, window)
                level = replace(level, windows=windows, stable=is_stable(windows, rules.stable))
                on_window(level)
            if level.stable or not window.latencies_s:
                break
        load.stopping.set()
        await running
    finally:
        await cancel(running)
    return level


def measure_all(
    make_source: Callable[[], AbstractAsyncContextManager[Source]],
    loops: Sequence[Loop],
    rules: Rules,
    on_window: Callable[[Level], None] = lambda level: None,
) -> Report:
    """Put one load after another on a server. `on_window` gets the current level after each window.

    If the server goes down or stops answering, or the user presses Ctrl-C, the figures so far are returned.

    Raises:
        AslTritonError: the server or its model is unusable, or no clip was answered.
        KeyboardInterrupt: Ctrl-C before the first window ended.
    """
    levels: dict[Loop, Level] = {}
    opened: list[Source] = []

    def keep(level: Level) -> None:
        levels[level.loop] = level
        on_window(level)

    async def run() -> None:
        async with make_source() as source:
            opened.append(source)
            for loop in loops:
                level = await measure(loop, source, rules, keep)
                if not (level.windows and level.windows[-1].latencies_s):
                    raise AslTritonError(f"no clip was answered with {loop}: {' and '.join(level.errors)}")

    stopped = None
    try:
        asyncio.run(run())
    except (AslTritonError, KeyboardInterrupt) as exc:
        if not any(level.has_answers for level in levels.values()):
            raise
        stopped = str(exc) or "interrupted"
    source = opened[0]
    return Report(
        address=source.transport.address,
        model=source.model,
        asked=source.asked,
        rules=rules,
        levels=tuple(level.summarize() for level in levels.values() if level.has_answers),
        errors=sum((Counter(level.errors) for level in levels.values()), Counter()),
        stopped=stopped,
    )
