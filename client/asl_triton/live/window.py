"""The newest window of a live stream. Frames arrive at any rate; crops leave at a constant one. Memory is bounded."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from asl_triton.errors import VideoError
from asl_triton.live.rules import LiveRules
from asl_triton.presets import Preset
from asl_triton.signer.search import WHOLE, Framing, show_frame
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import Crop
from asl_triton.video.shots import ShotDetector
from asl_triton.video.windows import WindowTiming

LIVE_FRAME_RATE = 25.0  # frames per second, for presets that use the clip's own rate
MAX_GAP_S = 1.0  # a jump of the clock by more than this, forward or back, starts a new run
# The fraction of a window that a run's first request needs. Networks for clips of any length work well on a short one;
# for networks with a fixed window length, the last frame is repeated.
FIRST_SHARE = {"clip": 1 / 4, "window": 1 / 2, "centered": 1 / 2}


@dataclass(frozen=True)
class WindowSnapshot:
    """A window to send: `frames` is uint8 RGB (T, 224, 224, 3).

    `timing` has the times in the clock of the frames that were fed. Its `shot` counts the stream's runs.
    """

    frames: Image
    timing: WindowTiming
    fed_s: float  # when the newest frame was fed, from `time.monotonic`
    is_last: bool  # the run is over


@dataclass
class BufferedFrame:
    """One frame at the constant rate. `is_new` is False if it repeats the previous frame."""

    number: int  # since the start of the run
    image: Image
    is_new: bool


def check_image(image_bgr: Image) -> None:
    """Check that an image is a valid frame.

    Raises:
        VideoError: the image is not uint8 (H, W, 3).
    """
    if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.dtype != np.uint8 or not image_bgr.size:
        raise VideoError(
            f"a frame must be uint8 BGR of height x width x 3, but this is {image_bgr.dtype} "
            f"{' x '.join(map(str, image_bgr.shape))}"
        )


class LiveWindow:
    """The newest crops of a stream, and the only place where live frames are dropped and counted. Not thread-safe.

    Frames are dropped until `prepare` sets their preset. A new run starts at a gap, at a cut, when the frames change in
    size, or when they are cropped differently. A window is due every `stride_frames`; the first of a run is due as soon
    as part of it is available.
    """

    def __init__(self) -> None:
        self.frames = 0  # fed
        self.dropped_frames = 0  # fed but never part of a request
        self.dropped_windows = 0  # due, but replaced by the next before being taken
        self.is_due = False
        self._preset: Preset | None = None
        self._buffer: deque[BufferedFrame] = deque()
        self._run = 0

    def prepare(self, preset: Preset) -> None:
        """Start with an empty window for a model with this preset."""
        self._forget(len(self._buffer))
        self._preset, self._framing = preset, WHOLE
        self._frame_rate = preset.frame_rate or LIVE_FRAME_RATE
        self.obey(LiveRules())
        self._shape: tuple[int, ...] = ()
        self._shots, self._shot = ShotDetector(), -1
        self._began_s = self._newest_s = -math.inf
        self._fed_s = 0.0
        self._asked = -1  # number of the newest frame that was part of a request
        self._due = 0  # number of the frame at which the next window is due
        self.is_due = False

    def obey(self, rules: LiveRules) -> None:
        """Use these rules from now on.

        Raises:
            AslTritonError: the preset does not accept windows of this length.
        """
        assert self._preset is not None
        self._window_frames, self._stride_frames = rules.window_length(self._preset), rules.stride_frames

    def push(self, image_bgr: Image, time_s: float, fed_s: float, framing: Framing = WHOLE) -> None:
        """Add the next frame, uint8 BGR (H, W, 3), shown at `time_s` and fed at `fed_s`, cropped to `framing`.

        Raises:
            VideoError: the image is too narrow to crop.
        """
        self.frames += 1
        if self._preset is None:
            self.dropped_frames += 1
            return
        if not math.isfinite(time_s) or -MAX_GAP_S <= time_s - self._newest_s < 0:
            self.dropped_frames += 1
            return
        image = show_frame(image_bgr, self._preset, framing)
        is_other = image_bgr.shape != self._shape or framing != self._framing
        if is_other or abs(time_s - self._newest_s) > MAX_GAP_S:
            self._shots, self._shot = ShotDetector(), -1
        shot = self._shots(Crop(image, time_s))
        if shot != self._shot:
            self._forget(len(self._buffer))
            self._run += 1
            self._began_s, self._asked, self.is_due = time_s, -1, False
            first = math.ceil(self._window_frames * FIRST_SHARE[self._preset.frames])
            self._due = max(first, self._preset.min_frames) - 1
        self._shape, self._framing = image_bgr.shape, framing
        self._shot, self._newest_s, self._fed_s = shot, time_s, fed_s
        number = math.floor((time_s - self._began_s) * self._frame_rate + 0.5)
        if self._buffer and self._buffer[-1].number == number:
            self._buffer[-1].image, self._buffer[-1].is_new = image, True
        else:
            while self._buffer and self._buffer[-1].number + 1 < number:
                last = self._buffer[-1]
                self._buffer.append(BufferedFrame(last.number + 1, last.image, is_new=False))
            self._buffer.append(BufferedFrame(number, image, is_new=True))
        self._forget(len(self._buffer) - self._window_frames)
        if number >= self._due:
            self.dropped_windows += self.is_due
            self._due, self.is_due = number + self._stride_frames, True

    def take(self, *, flush: bool = False) -> WindowSnapshot | None:
        """Return the newest window if one is due or, with `flush`, if any frame has not been in a request yet."""
        assert self._preset is not None
        if not self._buffer or not (self.is_due or (flush and self._buffer[-1].number > self._asked)):
            return None
        shown = list(self._buffer)[-self._window_frames :]
        least = self._preset.min_frames if self._preset.frames == "clip" else self._window_frames
        frames = np.empty((max(len(shown), least), *shown[0].image.shape), np.uint8)
        for place, buffered in enumerate(shown):
            frames[place] = buffered.image
        frames[len(shown) :] = shown[-1].image
        self._asked = shown[-1].number
        self._due, self.is_due = self._asked + self._stride_frames, False
        start = shown[0].number
        edges_s = self._began_s + np.arange(start, start + len(shown) + 1) / self._frame_rate
        return WindowSnapshot(frames, WindowTiming(start, len(frames), edges_s, self._run), self._fed_s, flush)

    def _forget(self, count: int) -> None:
        """Remove the oldest frames. Those that were never part of a request count as dropped."""
        for _ in range(count):
            oldest = self._buffer.popleft()
            self.dropped_frames += oldest.is_new and oldest.number > self._asked
