"""Frames to the network's input: frame rate, resizing, cropping, normalization."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.errors import VideoError
from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.video.colors import Image
from asl_triton.video.reader import Frame

MAX_SCALED_PIXELS = 7680 * 4320  # of a frame scaled up to `min_side`: only absurd aspect ratios exceed it


@dataclass(frozen=True)
class Crop:
    """One frame as the network sees it: `image` is uint8 RGB (224, 224, 3)."""

    image: Image
    time_s: float


def crop_frames(frames: Iterable[Frame], preset: Preset, max_frames: int) -> Iterator[Crop]:
    """Frames at the preset's rate, resized and cropped.

    Raises:
        VideoError: a broken timestamp would make more than `max_frames` of them, or a frame is absurdly narrow.
    """
    timed = frames if preset.frame_rate is None else resample(frames, preset.frame_rate, max_frames)
    return (Crop(crop_frame(frame.image, preset), frame.time_s) for frame in timed)


def resample(frames: Iterable[Frame], frame_rate: float, max_frames: int) -> Iterator[Frame]:
    """Frames at a constant rate: frame k is the last whose time, rounded to 1 / rate, is not after k / rate.

    Times count from the first frame's.
    """
    shown: Frame | None = None
    k, began_s = 0, 0.0
    for frame in frames:
        began_s = frame.time_s if shown is None else began_s
        slot = math.floor((frame.time_s - began_s) * frame_rate + 0.5)
        if slot > max_frames:
            raise VideoError(
                f"at {frame_rate:g} frames per second the video is longer than {max_frames} frames, the limit "
                f"(a frame is stamped {frame.time_s:.0f} s): cut it shorter, or repair its timestamps"
            )
        while shown is not None and k < slot:
            yield Frame(shown.image, began_s + k / frame_rate)
            k += 1
        k, shown = slot, frame
    if shown is not None:
        yield Frame(shown.image, began_s + k / frame_rate)


def crop_frame(image_bgr: Image, preset: Preset) -> Image:
    """Resize and crop one frame, BGR (H, W, 3), as the preset says: RGB (224, 224, 3)."""
    image = resize_frame(image_bgr, preset)
    height, width = image.shape[:2]
    top, left = round((height - INPUT_SIZE) / 2), round((width - INPUT_SIZE) / 2)
    center = image[top : top + INPUT_SIZE, left : left + INPUT_SIZE]
    return cv2.cvtColor(center, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)  # NumPy is fifty times slower


def resize_frame(image_bgr: Image, preset: Preset) -> Image:
    """Resize one frame, BGR (H, W, 3), to the size that the preset crops from: each side is at least 224."""
    height, width = image_bgr.shape[:2]
    image = image_bgr
    if min(height, width) < preset.min_side:
        scale = preset.min_side / min(height, width)
        if height * width * scale * scale > MAX_SCALED_PIXELS:
            raise VideoError(f"frames of {width} x {height} pixels cannot be scaled up to {preset.min_side}: crop them")
        image = resize_image(image, scale=scale)
    if preset.square is not None and max(height, width) > preset.square_above:
        image = resize_image(image, size=preset.square)
    return image


def resize_image(image: Image, *, scale: float | None = None, size: int | None = None) -> Image:
    """OpenCV's bilinear resize, by a factor or to a square."""
    if size is not None:
        return cv2.resize(image, (size, size)).astype(np.uint8, copy=False)
    return cv2.resize(image, None, fx=scale or 1.0, fy=scale or 1.0).astype(np.uint8, copy=False)


def normalize(frames_thwc: Image, preset: Preset) -> npt.NDArray[np.float32]:
    """Convert uint8 RGB (T, H, W, 3) to the preset's color order and range: float32 (3, T, H, W)."""
    low, high = preset.value_range
    ordered = frames_thwc[..., ::-1] if preset.colour == "BGR" else frames_thwc
    values = np.ascontiguousarray(ordered.transpose(3, 0, 1, 2), dtype=np.float32)  # (T, H, W, C) -> (C, T, H, W)
    values /= 255
    values *= high - low
    values += low
    return values
