"""Frames to what the network eats: rate, resize, crop, windows."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.errors import VideoError
from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.video import Frame, Image

POSITION_FRAMES = 8  # of a window, in one position of the network's temporal output; a step averages two neighbours
MAX_SCALED_PIXELS = 7680 * 4320  # of a frame scaled up to `min_side`: only an absurd aspect ratio passes it


@dataclass(frozen=True)
class Window:
    """Consecutive crops for one request: `frames` is uint8 RGB (T, 224, 224, 3); `start` counts in crops.

    Where it `is_only`, no other window comes of its video.
    """

    start: int
    frames: Image
    is_only: bool = False


@dataclass(frozen=True)
class Span:
    """Where a window is in time: `start` counts in crops from the video's first; `num_frames` are the window's.

    `edges_s` (K + 1,) says when each of its K crops begins to be shown, and when the last of them ends; K is below
    `num_frames` where the last crop is repeated. `shot` is the number of the window's shot in a film (see `shots.py`).
    """

    start: int
    num_frames: int
    edges_s: npt.NDArray[np.float64]
    shot: int = 0


@dataclass(frozen=True)
class Crop:
    """One frame as the network sees it: `image` is uint8 RGB (224, 224, 3)."""

    image: Image
    time_s: float


def crops(frames: Iterable[Frame], preset: Preset, max_frames: int) -> Iterator[Crop]:
    """Frames at the preset's rate, resized and cropped as it says.

    Raises:
        VideoError: more than `max_frames` would come of a broken timestamp, or a frame is absurdly narrow.
    """
    timed = frames if preset.frame_rate is None else at_rate(frames, preset.frame_rate, max_frames)
    return (Crop(crop(frame.image, preset), frame.time_s) for frame in timed)


def at_rate(frames: Iterable[Frame], frame_rate: float, max_frames: int) -> Iterator[Frame]:
    """Frames at a constant rate: frame k is the last whose time, to the nearest 1 / rate, is not after k / rate."""
    shown: Frame | None = None
    k = 0
    for frame in frames:
        slot = math.floor(frame.time_s * frame_rate + 0.5)
        if slot > max_frames:
            raise VideoError(
                f"at {frame_rate:g} frames per second the video is longer than {max_frames} frames, the limit "
                f"(a frame is stamped {frame.time_s:.0f} s): cut it shorter, or repair its timestamps"
            )
        while shown is not None and k < slot:
            yield Frame(shown.image, k / frame_rate)
            k += 1
        k, shown = slot, frame
    if shown is not None:
        yield Frame(shown.image, k / frame_rate)


def crop(image_bgr: Image, preset: Preset) -> Image:
    """One frame, BGR (H, W, 3), resized and cropped as the preset says: RGB (224, 224, 3)."""
    image = resize(image_bgr, preset)
    height, width = image.shape[:2]
    top, left = round((height - INPUT_SIZE) / 2), round((width - INPUT_SIZE) / 2)
    centre = image[top : top + INPUT_SIZE, left : left + INPUT_SIZE]
    return cv2.cvtColor(centre, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)  # NumPy takes fifty times as long


def resize(image_bgr: Image, preset: Preset) -> Image:
    """One frame, BGR (H, W, 3), at the size that the preset crops from: 224 or more a side."""
    height, width = image_bgr.shape[:2]
    image = image_bgr
    if min(height, width) < preset.min_side:
        scale = preset.min_side / min(height, width)
        if height * width * scale * scale > MAX_SCALED_PIXELS:
            raise VideoError(f"frames of {width} x {height} pixels cannot be scaled up to {preset.min_side}: crop them")
        image = resized(image, scale=scale)
    if preset.square is not None and max(height, width) > preset.square_above:
        image = resized(image, size=preset.square)
    return image


def resized(image: Image, *, scale: float | None = None, size: int | None = None) -> Image:
    """OpenCV's bilinear resize, by a factor or to a square."""
    if size is not None:
        return cv2.resize(image, (size, size)).astype(np.uint8, copy=False)
    return cv2.resize(image, None, fx=scale or 1.0, fy=scale or 1.0).astype(np.uint8, copy=False)


def windows(images: Iterator[Image], preset: Preset, bucket: int = 1, memory: Image | None = None) -> Iterator[Window]:
    """Crops as requests: the whole clip, or windows every `stride_frames`, the last one flush with the end.

    A clip shorter than the network or the preset's windows need repeats its last frame; so does a whole clip whose
    length is no multiple of `bucket`, up to `max_frames`. A clip of more than `max_frames` is windowed even where the
    whole clip is the rule. An only window is a part of `memory`, where that is given: room for `max_frames` crops.
    """
    windowed = preset.frames == "window"
    most = preset.window_frames if windowed else preset.max_frames
    least = preset.window_frames if windowed else preset.min_frames
    first = next(images, None)
    if first is None:
        return
    held = np.empty((most, *first.shape), np.uint8) if memory is None else memory  # takes memory as it is written to
    count = 0
    for image in islice(chain([first], images), most):
        held[count] = image
        count += 1
    after = next(images, None)
    if after is not None:
        if memory is not None:
            held = held[:most].copy()  # who gave the memory may use it between the windows
        yield from sliding(chain(held, [after], images), preset.window_frames, preset.stride_frames)
        return
    length = min(math.ceil(max(count, least) / bucket) * bucket, most)
    held[count:length] = held[count - 1]
    yield Window(0, held[:length], is_only=True)


def spanned(
    cut: Iterable[Crop], preset: Preset, frame_rate: float, bucket: int = 1, memory: Image | None = None
) -> Iterator[tuple[Window, Span]]:
    """The `windows` of crops, each with its place in time; `frame_rate` says how long the last crop is shown."""
    times_s: deque[float] = deque()
    first = 0  # the crop that times_s[0] is of

    def images() -> Iterator[Image]:
        for one in cut:
            times_s.append(one.time_s)
            yield one.image

    for window in windows(images(), preset, bucket, memory):
        for _ in range(window.start - first):
            times_s.popleft()
        first = window.start
        edges_s = list(islice(times_s, len(window.frames) + 1))
        if len(edges_s) <= len(window.frames):  # and so no crop has come after it yet
            edges_s.append(edges_s[-1] + 1 / (preset.frame_rate or frame_rate))
        yield window, Span(window.start, len(window.frames), np.array(edges_s))


def sliding(images: Iterable[Image], window: int, stride: int) -> Iterator[Window]:
    """Windows of `window` crops every `stride`, and one flush with the end where they do not reach it."""
    held: deque[Image] = deque(maxlen=window)
    count, covered, due = 0, 0, window
    for image in images:
        held.append(image)
        count += 1
        if count == due:
            yield Window(count - window, np.stack(held))
            covered, due = count, due + stride
    if count > covered:
        yield Window(count - len(held), np.stack(held))


def normalised(frames_thwc: Image, preset: Preset) -> npt.NDArray[np.float32]:
    """uint8 RGB (T, H, W, 3) in the preset's colour order and range: float32 (3, T, H, W)."""
    low, high = preset.value_range
    ordered = frames_thwc[..., ::-1] if preset.colour == "BGR" else frames_thwc
    values = np.ascontiguousarray(ordered.transpose(3, 0, 1, 2), dtype=np.float32)  # (T, H, W, C) -> (C, T, H, W)
    values /= 255
    values *= high - low
    values += low
    return values
