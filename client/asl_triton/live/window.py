"""Frames as they come, at whatever pace, to the newest window of crops at a constant one; memory is bounded."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.presets import Preset
from asl_triton.video.preprocessing import Crop, crop_frame
from asl_triton.video.reader import Image
from asl_triton.video.shots import ShotDetector

LIVE_FRAME_RATE = 25.0  # frames per second, where the preset takes the clip's own
MAX_GAP_S = 1.0  # between two frames; a clock that jumps by more, either way, begins a new window
# Of a window, seen before the first request: steps of the clip so far are sound, a repeated last frame is not.
FIRST_SHARE = {"clip": 1 / 4, "window": 1 / 2}


@dataclass(frozen=True)
class WindowSnapshot:
    """A window to ask about: `frames` is uint8 RGB (T, 224, 224, 3), of which the first `num_shown` were seen.

    What is behind them repeats the last. The first was shown at `start_s` by the clock of those who fed it, the newest
    was fed at `fed_s` by `time.monotonic`. Clips of one `run` follow one another; `flushed` is the last of its run.
    """

    frames: Image
    num_shown: int
    start_s: float
    frame_rate: float
    fed_s: float
    run: int
    flushed: bool

    def time_s(self, frames: float) -> float:
        """When so many frames of it were over."""
        return self.start_s + min(frames, self.num_shown) / self.frame_rate


@dataclass
class BufferedFrame:
    """One frame at the constant rate; `is_new` where it was fed, and does not repeat the one before."""

    number: int  # counts from the run's first
    image: Image
    is_new: bool


class LiveWindow:
    """The newest crops of a stream, for one thread at a time. A new run begins at a gap, a cut, or another size.

    A window is due every `stride_frames`, the first as soon as a part of it is there.
    """

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.frame_rate = preset.frame_rate or LIVE_FRAME_RATE
        self.size(None, 1)
        self.dropped_frames = 0  # fed, and never asked about: too late, or gone before the next request
        self.dropped_windows = 0  # due, and overtaken by the next before anybody asked
        self._slots: deque[BufferedFrame] = deque()
        self._picture: tuple[int, ...] = ()
        self._shot_number, self._shot = ShotDetector(), -1
        self._run = 0
        self._began_s = self._newest_s = -math.inf
        self._fed_s = 0.0
        self._asked = -1  # the newest slot that was asked about
        self._due = 0  # the slot that makes the next window due
        self.is_due = False

    def size(self, window_frames: int | None, stride_frames: int) -> None:
        """How long a window is (None: as the preset says), and how often one is due.

        Raises:
            AslTritonError: the preset takes no window of that length.
        """
        self.window_frames = window_frames or self.preset.window_frames
        if not self.preset.min_frames <= self.window_frames <= self.preset.max_frames:
            raise AslTritonError(
                f"a window of {self.window_frames} frames does not fit the preset {self.preset.name!r}: it takes "
                f"{self.preset.min_frames} to {self.preset.max_frames}"
            )
        self.stride_frames = stride_frames

    def push(self, image_bgr: Image, time_s: float, fed_s: float) -> None:
        """Take the next frame, BGR (H, W, 3), shown at `time_s`, fed at `fed_s`.

        Raises:
            VideoError: the image is not uint8 (H, W, 3), or cannot be cropped.
        """
        if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.dtype != np.uint8 or not image_bgr.size:
            raise VideoError(
                f"a frame must be uint8 of height x width x 3, BGR, and this is {image_bgr.dtype} "
                f"{' x '.join(map(str, image_bgr.shape))}"
            )
        if not math.isfinite(time_s) or -MAX_GAP_S <= time_s - self._newest_s < 0:
            self.dropped_frames += 1
            return
        image = crop_frame(image_bgr, self.preset)
        if image_bgr.shape != self._picture or abs(time_s - self._newest_s) > MAX_GAP_S:
            self._shot_number, self._shot = ShotDetector(), -1
        shot = self._shot_number(Crop(image, time_s))
        if shot != self._shot:
            self._begin(time_s)
        self._picture, self._shot = image_bgr.shape, shot
        self._newest_s, self._fed_s = time_s, fed_s
        self._append(image, math.floor((time_s - self._began_s) * self.frame_rate + 0.5))

    def take(self, *, flush: bool = False) -> WindowSnapshot | None:
        """The newest window, if one is due, or if there is anything not asked about yet and `flush`."""
        if not self._slots or not (self.is_due or (flush and self._slots[-1].number > self._asked)):
            return None
        shown = list(self._slots)[-self.window_frames :]
        least = self.window_frames if self.preset.frames == "window" else self.preset.min_frames
        frames = np.empty((max(len(shown), least), *shown[0].image.shape), np.uint8)
        for place, slot in enumerate(shown):
            frames[place] = slot.image
        frames[len(shown) :] = shown[-1].image
        self._asked = shown[-1].number
        self._due, self.is_due = self._asked + self.stride_frames, False
        start_s = self._began_s + shown[0].number / self.frame_rate
        return WindowSnapshot(frames, len(shown), start_s, self.frame_rate, self._fed_s, self._run, flush)

    def _begin(self, time_s: float) -> None:
        """Begin a new run."""
        self._forget(len(self._slots))
        self._run += 1
        self._began_s = time_s
        self._asked, self.is_due = -1, False
        first = math.ceil(self.window_frames * FIRST_SHARE[self.preset.frames])
        self._due = max(first, self.preset.min_frames) - 1

    def _append(self, image: Image, number: int) -> None:
        """Put a frame into its slot; those since the last repeat that one."""
        last = self._slots[-1] if self._slots else None
        if last is not None and last.number == number:
            last.image, last.is_new = image, True
        else:
            for between in range(last.number + 1 if last else number, number):
                self._slots.append(BufferedFrame(between, self._slots[-1].image, False))
            self._slots.append(BufferedFrame(number, image, True))
        self._forget(len(self._slots) - self.window_frames)
        if number >= self._due:
            self.dropped_windows += self.is_due
            self._due, self.is_due = number + self.stride_frames, True

    def _forget(self, count: int) -> None:
        """Let go of the oldest; those that nobody asked about were dropped."""
        for _ in range(count):
            slot = self._slots.popleft()
            self.dropped_frames += slot.is_new and slot.number > self._asked
