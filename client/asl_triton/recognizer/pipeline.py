"""One video on its way through a model: read and asked about window by window, answered in order, summed up."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from asl_triton.decoding.base import DecodeSession
from asl_triton.decoding.frame_budget import WINDOWS_AHEAD
from asl_triton.models.served import FRAMES, LOGITS, STEP_LOGITS, ServedModel
from asl_triton.postprocessing.ranking import Ranking, pool_windows, rank
from asl_triton.postprocessing.segmentation import Segmenter, select_curves
from asl_triton.postprocessing.stitching import Stitcher
from asl_triton.presets import Preset
from asl_triton.results import Curve, Logits, Recognition, Segment, Step, Timeline
from asl_triton.transport.base import Array
from asl_triton.video.windows import POSITION_FRAMES, Window, WindowTiming


class InferenceClient(Protocol):
    """What is asked about windows: a `Transport`, or the server that this runs inside of."""

    address: str

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        """Ask a model for some of its outputs."""


@dataclass(frozen=True)
class WindowResult:
    """What a model says of one window: `logits` (C,), and `step_logits` (S, C) where they were asked for."""

    span: WindowTiming
    logits: Logits
    step_logits: Logits | None


class ClipPipeline:
    """The windows of a video that is open, asked about as they come, a few at once: memory is bounded.

    `threads` read it, so that as many videos are decoded at once as there are threads.
    """

    def __init__(
        self, transport: InferenceClient, served: ServedModel, video: DecodeSession, *, priority: int, threads: Executor
    ) -> None:
        self.video, self.served = video, served
        self.num_windows = 0  # answered so far
        self._began_s = time.perf_counter() - video.decode_s
        self._transport, self._priority, self._threads = transport, priority, threads

    @property
    def decode_s(self) -> float:
        """The seconds so far, by the clock, in which a decoder worked on it: opening, reading, resizing, cropping."""
        return self.video.decode_s

    @property
    def wait_s(self) -> float:
        """The seconds since it was open in which no decoder worked on it: it waited for answers, or for its turn."""
        return time.perf_counter() - self._began_s - self.decode_s

    async def answers(self, *, steps: bool = False) -> AsyncGenerator[WindowResult, None]:
        """The windows' answers, in order; with step logits if `steps`.

        Raises:
            VideoError: the video cannot be decoded. ServerError, ContractError: a window cannot be answered.
        """
        asked: deque[asyncio.Task[WindowResult]] = deque()
        try:
            while (window := await self._next_window()) is not None:
                asked.append(asyncio.create_task(self._ask(*window, steps)))
                if window[0].is_only:
                    break
                while asked and (asked[0].done() or len(asked) == WINDOWS_AHEAD):
                    yield await self._first(asked)
            while asked:
                yield await self._first(asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _first(self, asked: deque[asyncio.Task[WindowResult]]) -> WindowResult:
        answer = await asked[0]
        asked.popleft()  # only now: one that is given up must be cancelled with the others
        self.num_windows += 1
        return answer

    async def _ask(self, window: Window, span: WindowTiming, steps: bool) -> WindowResult:
        tensor = self.served.make_input(window.frames)
        outputs = [LOGITS, STEP_LOGITS] if steps else [LOGITS]
        answers = await self._transport.infer(self.served.name, {FRAMES: tensor}, outputs, self._priority)
        address = self._transport.address
        logits = self.served.check_output(answers[LOGITS][0], (), address)
        if not steps:
            return WindowResult(span, logits, None)
        num_steps = max(math.ceil(span.num_frames / POSITION_FRAMES) - 1, 1)
        return WindowResult(span, logits, self.served.check_output(answers[STEP_LOGITS][0], (num_steps,), address))

    async def _next_window(self) -> tuple[Window, WindowTiming] | None:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.video.next_window)


async def run_recognition(
    inquiry: ClipPipeline, ranking: Ranking, curves: int = 0
) -> tuple[Recognition, tuple[Curve, ...]]:
    """What an inquiry's answers say together, and the confidences of the `curves` best glosses over time.

    Raises:
        AslTritonError: as `Inquiry.answers` does.
    """
    served, video = inquiry.served, inquiry.video
    stitcher, steps, window_logits = Stitcher(served.preset), list[Step](), []
    async with aclosing(inquiry.answers(steps=curves > 0)) as answers:
        async for answer in answers:
            window_logits.append(answer.logits)
            if answer.step_logits is not None:
                steps += stitcher.add(answer.span, answer.step_logits)
    steps += stitcher.finish()
    logits = pool_windows(window_logits, served.preset)
    predictions = rank(logits, served.labels, served.preset, ranking)
    recognition = Recognition(
        video=video.name,
        model=served.name,
        predictions=predictions,
        unsure=predictions[0].confidence < ranking.min_confidence,
        num_frames=video.num_frames,
        duration_s=video.duration_s,
        num_windows=inquiry.num_windows,
        decode_s=inquiry.decode_s,
        wait_s=inquiry.wait_s,
        warnings=tuple(video.warnings),
    )
    best = rank(logits, served.labels, served.preset, replace(ranking, top_k=curves)) if curves else ()
    return recognition, select_curves(steps, served.labels, [prediction.class_id for prediction in best])


async def iter_steps(inquiry: ClipPipeline, preset: Preset) -> AsyncGenerator[Step, None]:
    """The steps of an inquiry's windows, in order, each as soon as no window to come can change it."""
    stitcher = Stitcher(preset)
    async with aclosing(inquiry.answers(steps=True)) as answers:
        async for answer in answers:
            assert answer.step_logits is not None
            for step in stitcher.add(answer.span, answer.step_logits):
                yield step
    for step in stitcher.finish():
        yield step


async def run_timeline(
    inquiry: ClipPipeline,
    preset: Preset,
    segmenter: Segmenter,
    on_segment: Callable[[Segment], None],
    on_progress: Callable[[float], None],
) -> Timeline:
    """The timeline that a segmenter makes of an inquiry's steps; who listens gets each segment, and the share read.

    Raises:
        AslTritonError: as `Inquiry.answers` does.
    """
    video = inquiry.video
    segments: list[Segment] = []

    def keep(found: list[Segment]) -> None:
        for segment in found:
            segments.append(segment)
            on_segment(segment)

    async with aclosing(iter_steps(inquiry, preset)) as steps:
        async for step in steps:
            keep(segmenter.push(step))
            on_progress(video.share_read)
    keep(segmenter.finish())
    return Timeline(
        video=video.name,
        model=inquiry.served.name,
        segments=tuple(sorted(segments, key=lambda segment: segment.start_s)),
        num_frames=video.num_frames,
        duration_s=video.duration_s,
        num_windows=inquiry.num_windows,
        decode_s=inquiry.decode_s,
        wait_s=inquiry.wait_s,
        warnings=tuple(video.warnings),
    )
