"""Stitches the step logits of overlapping windows in time.

A step of the network is the mean of two neighboring positions of its temporal output, and each position comes from 8
frames. So step s of a window covers the window's frames 8 s to 8 s + 15, and shares half of them with each neighbor.
In time, it stands for the 8 frames in its middle. Their times come from the timestamps of the crops, so variable frame
rates are respected.
"""

from dataclasses import dataclass, replace

import numpy as np

from asl_triton.errors import AslTritonError
from asl_triton.postprocessing.ranking import compute_confidences
from asl_triton.presets import Preset
from asl_triton.results import Logits, Step
from asl_triton.video.windows import POSITION_FRAMES, WindowTiming


def with_window(preset: Preset, window: int | None = None, stride: int | None = None) -> Preset:
    """Return the preset, changed to cut any video of more than `window` frames into windows, one every `stride` frames.

    Both default to the preset's. If only `window` is given, the stride is scaled with it. With centered frames, every
    window has exactly `window` frames, because the network was trained on a single length.

    Raises:
        AslTritonError: the model does not accept that window, or the stride skips frames.
    """
    window = preset.window_frames if window is None else window
    if not preset.min_frames <= window <= preset.max_frames:
        raise AslTritonError(
            f"--window {window} is out of range: preset {preset.name!r} accepts {preset.min_frames} to "
            f"{preset.max_frames} frames"
        )
    stride = max(window * preset.stride_frames // preset.window_frames, 1) if stride is None else stride
    if not 1 <= stride <= window:
        raise AslTritonError(
            f"--stride {stride} is out of range: windows of {window} frames need 1 to {window}, or frames are skipped"
        )
    frames = "window" if preset.frames == "centered" else preset.frames
    return replace(preset, window_frames=window, stride_frames=stride, max_frames=window, frames=frames)


@dataclass
class StepAccumulator:
    """Sums the times and logits of steps from several windows whose middles lie in the same 8 crops."""

    logits: Logits
    start_s: float = 0.0
    end_s: float = 0.0
    count: int = 0

    def add(self, logits: Logits, start_s: float, end_s: float) -> None:
        """Add one step."""
        self.logits = self.logits + logits
        self.start_s += start_s
        self.end_s += end_s
        self.count += 1

    def step(self, preset: Preset) -> Step:
        """Return the mean of all added steps."""
        scores = compute_confidences(self.logits / self.count, preset)
        return Step(self.start_s / self.count, self.end_s / self.count, scores.astype(np.float32))


class Stitcher:
    """Turns the step logits of a video's windows, in order, into the video's steps.

    Where windows overlap, a step is the mean of their logits, and of their times if the stride is not a multiple of 8
    frames. The alternative, to take each step from the window in which it is closest to the middle, makes borders less
    accurate: 176 ms off instead of 137 in ten minutes of the demo signer (`python -m tests.benchmarks.timeline
    --alternatives`). A window is unreliable about a sign at its end, and there the next window corrects it.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._shot = 0
        self._cells: dict[int, StepAccumulator] = {}  # by place; the next window may still change them

    def add(self, span: WindowTiming, step_logits: Logits) -> list[Step]:
        """Take the next window's step logits (S, C), and return the steps that no later window can change."""
        cells, starts_s, ends_s = locate_steps(span, len(step_logits))
        over = [cell for cell in sorted(self._cells) if cell < cells[0] or span.shot != self._shot]
        settled = [self._cells.pop(cell).step(self._preset) for cell in over]
        self._shot = span.shot
        for cell, start_s, end_s, logits in zip(cells, starts_s, ends_s, step_logits, strict=True):
            if start_s == end_s:  # covers only repetitions of the last crop
                break
            self._cells.setdefault(cell, StepAccumulator(np.zeros_like(logits))).add(logits, start_s, end_s)
        return settled

    def finish(self) -> list[Step]:
        """Return the remaining steps, after the last window was added."""
        settled = [self._cells[cell].step(self._preset) for cell in sorted(self._cells)]
        self._cells = {}
        return settled


def make_steps(timing: WindowTiming, step_logits: Logits, preset: Preset) -> list[Step]:
    """Return the steps of a single window from its step logits (S, C), without those that only see repeated crops."""
    _, starts_s, ends_s = locate_steps(timing, len(step_logits))
    confidences = compute_confidences(step_logits, preset).astype(np.float32)
    times_s = zip(starts_s, ends_s, confidences, strict=True)
    return [Step(start_s, end_s, values) for start_s, end_s, values in times_s if start_s < end_s]


def locate_steps(timing: WindowTiming, num_steps: int) -> tuple[list[int], list[float], list[float]]:
    """Return a window's steps: their places among the steps of the whole video, and when each begins and ends."""
    starts = np.arange(num_steps) * POSITION_FRAMES + POSITION_FRAMES // 2
    ends = starts + POSITION_FRAMES
    if num_steps == 1:  # the window is too short for more than one step
        starts, ends = np.array([0]), np.array([timing.num_frames])
    places = (timing.start + (starts + ends) // 2 + POSITION_FRAMES // 2) // POSITION_FRAMES
    starts_s, ends_s = np.interp([starts, ends], np.arange(len(timing.edges_s)), timing.edges_s).tolist()
    return places.tolist(), starts_s, ends_s
