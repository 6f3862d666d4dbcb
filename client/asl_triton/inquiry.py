"""One clip on its way through a recogniser: decoded, cropped and asked about window by window, answered in order."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar

from asl_triton.clips import POSITION_FRAMES, Span, Window
from asl_triton.contract import FRAMES, LOGITS, STEP_LOGITS, ServedModel
from asl_triton.memory import WINDOWS_AHEAD
from asl_triton.predictions import Logits
from asl_triton.presets import Preset
from asl_triton.stitching import Stitcher
from asl_triton.timeline import Step
from asl_triton.transport import Array

T = TypeVar("T")
Cut = Iterator[tuple[Window, Span]]


class Asked(Protocol):
    """What is asked about windows: a `Transport`, or the server that this runs inside of."""

    address: str

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        """Ask a model for some of its outputs."""


class Reading(Protocol):
    """What is known of a video so far, wherever it is decoded."""

    name: str
    num_frames: int
    duration_s: float
    warnings: list[str]


@dataclass(frozen=True)
class Answer:
    """What a recogniser says of one window: `logits` (C,), and `step_logits` (S, C) where they were asked for."""

    span: Span
    logits: Logits
    step_logits: Logits | None


class Inquiry:
    """The windows that are cut of a video, asked about as they come, a few at once: memory is bounded."""

    def __init__(
        self,
        transport: Asked,
        served: ServedModel,
        video: Reading,
        cut: Cut,
        *,
        priority: int,
        decoders: Executor,
    ) -> None:
        self.video = video
        self.num_windows = 0  # answered so far
        self.decode_s = 0.0  # spent reading, resizing and cropping so far
        self._began_s = time.perf_counter()
        self._transport, self._served, self._priority, self._decoders = transport, served, priority, decoders
        self._cut = cut

    @property
    def wait_s(self) -> float:
        """The seconds since it began that were not spent decoding."""
        return time.perf_counter() - self._began_s - self.decode_s

    async def answers(self, *, steps: bool = False) -> AsyncGenerator[Answer, None]:
        """The windows' answers, in order; with step logits if `steps`.

        Raises:
            VideoError: the video cannot be decoded. ServerError, ContractError: a window cannot be answered.
        """
        asked: deque[asyncio.Task[Answer]] = deque()
        try:
            while (window := await self._decode(self._next_window)) is not None:
                asked.append(asyncio.create_task(self._ask(*window, steps)))
                while asked and (asked[0].done() or len(asked) == WINDOWS_AHEAD):
                    yield await self._first(asked)
            while asked:
                yield await self._first(asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _first(self, asked: deque[asyncio.Task[Answer]]) -> Answer:
        answer = await asked[0]
        asked.popleft()  # only now: one that is given up must be cancelled with the others
        self.num_windows += 1
        return answer

    async def _ask(self, window: Window, span: Span, steps: bool) -> Answer:
        tensor = self._served.tensor(window.frames)
        outputs = [LOGITS, STEP_LOGITS] if steps else [LOGITS]
        answers = await self._transport.infer(self._served.name, {FRAMES: tensor}, outputs, self._priority)
        address = self._transport.address
        logits = self._served.checked(answers[LOGITS][0], (), address)
        if not steps:
            return Answer(span, logits, None)
        num_steps = max(math.ceil(span.num_frames / POSITION_FRAMES) - 1, 1)
        return Answer(span, logits, self._served.checked(answers[STEP_LOGITS][0], (num_steps,), address))

    def _next_window(self) -> tuple[Window, Span] | None:
        began_s = time.perf_counter()
        window = next(self._cut, None)
        self.decode_s += time.perf_counter() - began_s
        return window

    async def _decode(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)


async def stitched(inquiry: Inquiry, preset: Preset) -> AsyncGenerator[Step, None]:
    """The steps of an inquiry's windows, in order, each as soon as no window to come can change it."""
    stitcher = Stitcher(preset)
    async with aclosing(inquiry.answers(steps=True)) as answers:
        async for answer in answers:
            assert answer.step_logits is not None
            for step in stitcher.add(answer.span, answer.step_logits):
                yield step
    for step in stitcher.finish():
        yield step
