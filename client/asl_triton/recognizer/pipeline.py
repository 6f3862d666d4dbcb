"""Runs one video through a model: decodes it, sends it window by window, and combines the answers."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from asl_triton.decoding.base import WINDOWS_AHEAD, DecodeSession
from asl_triton.models.served import FEATURES, FRAMES, LOGITS, STEP_LOGITS, ServedModel
from asl_triton.postprocessing.ranking import ClassIds, Ranking, pool_windows, rank
from asl_triton.postprocessing.segmentation import Segmenter, select_curves
from asl_triton.postprocessing.stitching import Stitcher
from asl_triton.presets import Preset
from asl_triton.results import Curve, Logits, Recognition, Segment, Step, Timeline
from asl_triton.teaching.embedding import Embedding, average_embeddings, embed_clip
from asl_triton.transport.base import Array
from asl_triton.video.preprocessing import Crop
from asl_triton.video.windows import POSITION_FRAMES, Window, WindowTiming


class InferenceClient(Protocol):
    """Sends inference requests: a `Transport`, or the server that this code runs inside."""

    address: str

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        """Request some of a model's outputs."""


@dataclass(frozen=True)
class WindowResult:
    """The answer to one window: `logits` (C,), and `step_logits` (S, C) and `features` (F,) if they were requested."""

    timing: WindowTiming
    logits: Logits
    step_logits: Logits | None = None
    features: Array | None = None


class ClipPipeline:
    """Sends the windows of an open video as they are decoded, a few at a time so that memory is bounded.

    `threads` do the decoding, so their number is how many videos are decoded at once.
    """

    def __init__(
        self, client: InferenceClient, served: ServedModel, video: DecodeSession, *, priority: int, threads: Executor
    ) -> None:
        self.video, self.served = video, served
        self.num_windows = 0  # answered so far
        self._began_s = time.perf_counter() - video.decode_s
        self._client, self._priority, self._threads = client, priority, threads

    @property
    def wait_s(self) -> float:
        """Seconds since the video was opened in which it waited, for answers or for a free decoder."""
        return time.perf_counter() - self._began_s - self.video.decode_s

    async def iter_windows(self, *, steps: bool = False, features: bool = False) -> AsyncGenerator[WindowResult, None]:
        """Send the windows and yield their results in order, with step logits if `steps` and features if `features`.

        Raises:
            VideoError: the video cannot be decoded. ServerError, ContractError: a window cannot be answered.
        """
        loop = asyncio.get_running_loop()
        pending: deque[asyncio.Task[WindowResult]] = deque()
        try:
            while (window := await loop.run_in_executor(self._threads, self.video.next_window)) is not None:
                pending.append(asyncio.create_task(self._infer_window(*window, steps, features)))
                if window[0].is_only:
                    break
                while pending and (pending[0].done() or len(pending) == WINDOWS_AHEAD):
                    yield await pending[0]
                    pending.popleft()
                    self.num_windows += 1
            while pending:
                yield await pending[0]
                pending.popleft()
                self.num_windows += 1
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def read_crops(self, times_s: Sequence[float]) -> list[Crop]:
        """Return the crops shown at these times, in this order, without sending them.

        Raises:
            VideoError: the video cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        found: dict[float, Crop] = {}
        while (window := await loop.run_in_executor(self._threads, self.video.next_window)) is not None:
            frames, edges_s = window[0].frames, window[1].edges_s
            for time_s in times_s:
                place = int(np.searchsorted(edges_s, time_s, side="right")) - 1
                if time_s not in found or place >= 0:
                    place = min(max(place, 0), len(edges_s) - 2)
                    found[time_s] = Crop(frames[place].copy(), float(edges_s[place]))
            if window[0].is_only or edges_s[-1] > max(times_s, default=-math.inf):
                break
        return [found[time_s] for time_s in times_s]

    async def _infer_window(self, window: Window, timing: WindowTiming, steps: bool, features: bool) -> WindowResult:
        served, address = self.served, self._client.address
        outputs = [LOGITS, *([STEP_LOGITS] if steps else []), *([FEATURES] if features else [])]
        inputs = {FRAMES: served.make_input(window.frames)}
        answers = await self._client.infer(served.name, inputs, outputs, self._priority)
        logits = served.check_output(answers[LOGITS][0], (), address)
        step_logits = None
        if steps:
            num_steps = max(math.ceil(timing.num_frames / POSITION_FRAMES) - 1, 1)
            step_logits = served.check_output(answers[STEP_LOGITS][0], (num_steps,), address)
        return WindowResult(timing, logits, step_logits, answers[FEATURES][0] if features else None)


async def run_embedding(pipeline: ClipPipeline) -> Embedding:
    """Return the embedding of a clip, which is the mean of its windows' embeddings.

    Raises:
        AslTritonError: as `ClipPipeline.iter_windows`.
    """
    embeddings = []
    async with aclosing(pipeline.iter_windows(steps=True, features=True)) as results:
        async for result in results:
            assert result.step_logits is not None and result.features is not None
            embeddings.append(embed_clip(result.features, result.step_logits))
    return average_embeddings(embeddings)


async def run_recognition(pipeline: ClipPipeline, ranking: Ranking, class_ids: ClassIds) -> Recognition:
    """Recognize the sign in a clip; `class_ids` are the classes that `ranking` allows.

    If the caller gave no threshold, the model's own decides whether the answer is unsure.

    Raises:
        AslTritonError: as `ClipPipeline.iter_windows`.
    """
    async with aclosing(pipeline.iter_windows()) as results:
        window_logits = [result.logits async for result in results]
    return build_recognition(pipeline, pool_windows(window_logits, pipeline.served.preset), ranking, class_ids)


async def run_recognition_with_curves(
    pipeline: ClipPipeline, ranking: Ranking, class_ids: ClassIds, count: int
) -> tuple[Recognition, tuple[Curve, ...]]:
    """Recognize like `run_recognition`, and return the confidences of the `count` best glosses over time as well."""
    served = pipeline.served
    stitcher, steps, window_logits = Stitcher(served.preset), list[Step](), []
    async with aclosing(pipeline.iter_windows(steps=True)) as results:
        async for result in results:
            window_logits.append(result.logits)
            assert result.step_logits is not None
            steps += stitcher.add(result.timing, result.step_logits)
    steps += stitcher.finish()
    logits = pool_windows(window_logits, served.preset)
    best = rank(logits, served.labels, served.preset, class_ids, count)
    curves = select_curves(steps, served.labels, [prediction.class_id for prediction in best])
    return build_recognition(pipeline, logits, ranking, class_ids), curves


def build_recognition(pipeline: ClipPipeline, logits: Logits, ranking: Ranking, class_ids: ClassIds) -> Recognition:
    """Build a clip's result from its pooled logits (C,), after all of its windows were answered."""
    served, video = pipeline.served, pipeline.video
    ranking = ranking.with_threshold(served.card.min_confidence)
    predictions = rank(logits, served.labels, served.preset, class_ids, ranking.top_k)
    return Recognition(
        video=video.name,
        model=served.name,
        predictions=predictions,
        unsure=ranking.is_unsure(predictions),
        num_frames=video.num_frames,
        duration_s=video.duration_s,
        num_windows=pipeline.num_windows,
        decode_s=video.decode_s,
        wait_s=pipeline.wait_s,
        warnings=(*served.card.warnings, *video.warnings, *list_framing_warnings(video)),
        lost_frames=video.lost_frames,
        signer=video.signer,
    )


def list_framing_warnings(video: DecodeSession) -> list[str]:
    """List what a decoded video lacks that its preset needs, and what was given but not used."""
    options = video.options
    preset, warnings = options.preset, []
    has_box = video.signer is not None or any(shot.box for shot in video.shot_boxes)
    if preset.framing == "signer" and not has_box and not options.finds_signer:
        warnings.append(
            f"preset {preset.name!r} was trained on signers cut out of the frame, but the signer's box is unknown, so "
            "whole frames were used. Give the box (--signer x0,y0,x1,y1; SIGNER_BOX)"
        )
    box = options.signer
    if box is not None and box.source == "caller" and not box.is_whole_frame and not has_box:
        warnings.append(
            f"the signer's box was not used: preset {preset.name!r} takes whole frames unless the signer is small or "
            "the video is taller than wide"
        )
    longest = preset.latest_start + preset.max_centered_frames
    if preset.frames == "centered" and options.excerpt is None and video.num_frames > longest:
        warnings.append(
            f"only frames {preset.latest_start} to {preset.max_centered_frames - 1} of {video.num_frames:,} were "
            f"used, because preset {preset.name!r} is for short clips: cut the video to one sign"
        )
    return warnings


async def iter_steps(pipeline: ClipPipeline, preset: Preset) -> AsyncGenerator[Step, None]:
    """Yield the steps of the windows in order, each as soon as no later window can change it."""
    stitcher = Stitcher(preset)
    async with aclosing(pipeline.iter_windows(steps=True)) as results:
        async for result in results:
            assert result.step_logits is not None
            for step in stitcher.add(result.timing, result.step_logits):
                yield step
    for step in stitcher.finish():
        yield step


async def run_timeline(
    pipeline: ClipPipeline,
    preset: Preset,
    segmenter: Segmenter,
    on_segment: Callable[[Segment], None],
    on_progress: Callable[[float], None],
) -> Timeline:
    """Segment a video's steps. `on_segment` is called with each segment, `on_progress` with the share read so far.

    Raises:
        AslTritonError: as `ClipPipeline.iter_windows`.
    """
    video = pipeline.video
    segments: list[Segment] = []
    async with aclosing(iter_steps(pipeline, preset)) as steps:
        async for step in steps:
            for segment in segmenter.push(step):
                segments.append(segment)
                on_segment(segment)
            on_progress(video.share_read)
    for segment in segmenter.finish():
        segments.append(segment)
        on_segment(segment)
    return Timeline(
        video=video.name,
        model=pipeline.served.name,
        segments=tuple(sorted(segments, key=lambda segment: segment.start_s)),
        num_frames=video.num_frames,
        duration_s=video.duration_s,
        num_windows=pipeline.num_windows,
        decode_s=video.decode_s,
        wait_s=pipeline.wait_s,
        warnings=(*pipeline.served.card.warnings, *video.warnings, *list_framing_warnings(video)),
        lost_frames=video.lost_frames,
        signers=tuple(video.shot_boxes) if any(shot.box for shot in video.shot_boxes) else (),
    )
