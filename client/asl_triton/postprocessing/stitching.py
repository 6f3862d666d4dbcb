"""The step logits of overlapping windows, stitched in time.

A step of the network is the mean of two neighboring positions of its temporal output, and a position is what became
of 8 frames: step s of a window covers the window's frames 8 s to 8 s + 15, and shares half of them with either
neighbor. In time it stands for the 8 frames in its middle. When those were shown is read from the timestamps of the
crops, so variable frame rates are honored.
"""

from dataclasses import dataclass, replace

import numpy as np

from asl_triton.errors import AslTritonError
from asl_triton.postprocessing.ranking import compute_confidences
from asl_triton.presets import Preset
from asl_triton.results import Logits, Step
from asl_triton.video.windows import POSITION_FRAMES, WindowTiming


def with_window(preset: Preset, window: int | None = None, stride: int | None = None) -> Preset:
    """The preset, made to cut any video of more than `window` frames into windows of that length, one every `stride`.

    With centered frames, every window has exactly `window` frames, since the network was trained on one length. Both
    default to the preset's; a window alone scales the stride with it.

    Raises:
        AslTritonError: the model does not take that window, or the stride leaves frames out.
    """
    window = preset.window_frames if window is None else window
    if not preset.min_frames <= window <= preset.max_frames:
        raise AslTritonError(
            f"a window of {window} frames cannot be: with the preset {preset.name!r} it has {preset.min_frames} to "
            f"{preset.max_frames} (--window)"
        )
    stride = max(window * preset.stride_frames // preset.window_frames, 1) if stride is None else stride
    if not 1 <= stride <= window:
        raise AslTritonError(
            f"a stride of {stride} frames cannot be: it goes from 1 to the window's {window}, or frames are left out "
            "(--stride)"
        )
    frames = "window" if preset.frames == "centered" else preset.frames
    return replace(preset, window_frames=window, stride_frames=stride, max_frames=window, frames=frames)


@dataclass
class StepAccumulator:
    """The steps of several windows whose middles lie in the same 8 crops: sums of their times and logits."""

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
        """The mean of all of them, as one step."""
        scores = compute_confidences(self.logits / self.count, preset)
        return Step(self.start_s / self.count, self.end_s / self.count, scores.astype(np.float32))


class Stitcher:
    """Step logits of a video's windows, in order, to its steps.

    Where windows overlap, a step is the mean of what they say: of their logits, and of their times where the stride
    is no multiple of 8 frames. The other way, to take each step from the window in whose middle it is most, puts
    borders further off: 176 ms against 137 in ten minutes of the demo signer (`python -m tests.benchmarks.timeline
    --alternatives`). What a window sees of a sign at its end is doubtful, and there the next one contradicts.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._shot = 0
        self._cells: dict[int, StepAccumulator] = {}  # that the next window may still change, by their place

    def add(self, span: WindowTiming, step_logits: Logits) -> list[Step]:
        """Take the next window's step logits (S, C); gives the steps that no later window can change."""
        cells, starts_s, ends_s = locate_steps(span, len(step_logits))
        over = [cell for cell in sorted(self._cells) if cell < cells[0] or span.shot != self._shot]
        settled = [self._cells.pop(cell).step(self._preset) for cell in over]
        self._shot = span.shot
        for cell, start_s, end_s, logits in zip(cells, starts_s, ends_s, step_logits, strict=True):
            if start_s == end_s:  # of the last crop's repetitions
                break
            self._cells.setdefault(cell, StepAccumulator(np.zeros_like(logits))).add(logits, start_s, end_s)
        return settled

    def finish(self) -> list[Step]:
        """The steps that are left, when the last window was added."""
        settled = [self._cells[cell].step(self._preset) for cell in sorted(self._cells)]
        self._cells = {}
        return settled


def make_steps(timing: WindowTiming, step_logits: Logits, preset: Preset) -> list[Step]:
    """The steps of one window by itself, from its step logits (S, C), without those that only see repeated crops."""
    _, starts_s, ends_s = locate_steps(timing, len(step_logits))
    confidences = compute_confidences(step_logits, preset).astype(np.float32)
    times_s = zip(starts_s, ends_s, confidences, strict=True)
    return [Step(start_s, end_s, values) for start_s, end_s, values in times_s if start_s < end_s]


def locate_steps(timing: WindowTiming, num_steps: int) -> tuple[list[int], list[float], list[float]]:
    """Where a window's steps are: their places among those of the whole video, and when each begins and ends."""
    starts = np.arange(num_steps) * POSITION_FRAMES + POSITION_FRAMES // 2
    ends = starts + POSITION_FRAMES
    if num_steps == 1:  # all that there is of so short a window
        starts, ends = np.array([0]), np.array([timing.num_frames])
    places = (timing.start + (starts + ends) // 2 + POSITION_FRAMES // 2) // POSITION_FRAMES
    starts_s, ends_s = np.interp([starts, ends], np.arange(len(timing.edges_s)), timing.edges_s).tolist()
    return places.tolist(), starts_s, ends_s
