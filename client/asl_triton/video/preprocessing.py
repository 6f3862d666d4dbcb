"""Turns frames into the network's input: frame rate, resizing, cropping, normalization."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.errors import VideoError
from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.results import SignerBox
from asl_triton.video.colors import Image
from asl_triton.video.reader import Frame

CROP_SHAPE = (INPUT_SIZE, INPUT_SIZE, 3)
WHOLE_FRAME = SignerBox(0, 0, 1, 1, source="frame")
MAX_TRAINED_RATE = 35.0  # frames per second
MAX_SCALED_PIXELS = 7680 * 4320  # of a frame scaled up to `min_side`; only absurd aspect ratios exceed it


@dataclass(frozen=True)
class Crop:
    """One frame as the network sees it: `image` is uint8 RGB (224, 224, 3); `shot` is the number of a film's shot."""

    image: Image
    time_s: float
    shot: int = 0


def crop_frames(
    frames: Iterable[Frame],
    preset: Preset,
    max_frames: int,
    signer: SignerBox | None = None,
    memory: Image | None = None,
) -> Iterator[Crop]:
    """Crop frames at the preset's rate: resize, then crop the center, or the signer's box if the preset frames by it.

    If `memory` (N, 224, 224, 3) is given, the first N crops are written to it and are views of it.

    Raises:
        VideoError: a broken timestamp would cause more than `max_frames` frames, or a frame is absurdly narrow.
    """
    places = iter(() if memory is None else memory)
    for frame in pace_frames(frames, preset, max_frames):
        yield Crop(crop_frame(frame.image, preset, signer, next(places, None)), frame.time_s)


def pace_frames(frames: Iterable[Frame], preset: Preset, max_frames: int) -> Iterable[Frame]:
    """Return the frames at the preset's rate, if it has one.

    Raises:
        VideoError: a broken timestamp would cause more than `max_frames` frames.
    """
    return frames if preset.frame_rate is None else resample(frames, preset.frame_rate, max_frames)


def choose_frame_step(preset: Preset, frame_rate: float) -> int:
    """Return n, where a preset that keeps the clip's rate uses every n-th frame, so that at most 35 per second remain.

    Published weights were trained on videos with 24 to 30 frames per second. For presets with their own rate or number
    of frames this is 1.
    """
    if preset.frame_rate is not None or preset.frames == "centered":
        return 1
    return max(math.ceil(frame_rate / MAX_TRAINED_RATE), 1)


def resample(frames: Iterable[Frame], frame_rate: float, max_frames: int) -> Iterator[Frame]:
    """Yield frames at a constant rate. Frame k is the last one whose time, rounded to 1 / rate, is at most k / rate.

    Times count from the first frame.
    """
    shown: Frame | None = None
    k, began_s = 0, 0.0
    for frame in frames:
        began_s = frame.time_s if shown is None else began_s
        slot = math.floor((frame.time_s - began_s) * frame_rate + 0.5)
        if slot > max_frames:
            raise VideoError(
                f"at {frame_rate:g} frames per second, the video exceeds the limit of {max_frames} frames "
                f"(a frame has the timestamp {frame.time_s:.0f} s): cut it shorter, or repair its timestamps"
            )
        while shown is not None and k < slot:
            yield Frame(shown.image, began_s + k / frame_rate)
            k += 1
        k, shown = slot, frame
    if shown is not None:
        yield Frame(shown.image, began_s + k / frame_rate)


def crop_frame(image_bgr: Image, preset: Preset, signer: SignerBox | None = None, place: Image | None = None) -> Image:
    """Resize and crop one frame, BGR (H, W, 3), to RGB (224, 224, 3) as the preset says. Writes to `place` if given.

    A preset that frames by the signer uses the whole frame if there is no box; other presets ignore the box.
    """
    image = resize_frame(image_bgr, preset)
    if preset.framing == "signer":
        cut = crop_signer(image, signer or WHOLE_FRAME, preset)
    else:
        height, width = image.shape[:2]
        top, left = round((height - INPUT_SIZE) / 2), round((width - INPUT_SIZE) / 2)
        cut = image[top : top + INPUT_SIZE, left : left + INPUT_SIZE]
    crop = np.empty(CROP_SHAPE, np.uint8) if place is None else place
    cv2.cvtColor(cut, cv2.COLOR_BGR2RGB, dst=crop)  # NumPy is fifty times slower
    return crop


def resize_frame(image_bgr: Image, preset: Preset) -> Image:
    """Resize one frame, BGR (H, W, 3), to the size that the preset crops from, at least 224 on each side."""
    height, width = image_bgr.shape[:2]
    image = image_bgr
    if min(height, width) < preset.min_side:
        scale = preset.min_side / min(height, width)
        if height * width * scale * scale > MAX_SCALED_PIXELS:
            raise VideoError(
                f"frames of {width} x {height} pixels are too narrow to scale up to {preset.min_side}: crop them"
            )
        image = resize_image(image, scale=scale)
    if preset.square is not None and max(height, width) > preset.square_above:
        image = resize_image(image, size=preset.square)
    return image


def crop_signer(image: Image, signer: SignerBox, preset: Preset) -> Image:
    """Crop the signer's box from a squared frame (S, S, 3) as bsl1k does: (224, 224, 3), in the frame's color order.

    The box is shrunk to 224 / S around its center, as by a center crop, and stretched to a square. Source:
    `gpu_collater` in datasets/videodataset.py of gulvarol/bsl1k, which does not round to whole gray levels.
    """
    region = shrink_box(signer, INPUT_SIZE / len(image))
    return np.rint(sample_region(image, region, INPUT_SIZE)).astype(np.uint8)


def shrink_box(signer: SignerBox, share: float) -> tuple[float, float, float, float]:
    """Shrink a box around its center to this share of its sides: left, top, right, bottom."""
    x, y = (signer.x0 + signer.x1) / 2, (signer.y0 + signer.y1) / 2
    half_width, half_height = (signer.x1 - signer.x0) * share / 2, (signer.y1 - signer.y0) * share / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def sample_region(image: Image, region: tuple[float, float, float, float], size: int) -> npt.NDArray[np.float32]:
    """Sample a region of an image (H, W, 3) bilinearly: float32 (size, size, 3).

    The region is (x0, y0, x1, y1) in fractions of the image. The samples are evenly spaced from edge to edge of the
    region, in half-pixel coordinates, like PyTorch's `grid_sample` with `align_corners=False`.
    """
    x0, y0, x1, y1 = region
    rows, row_weights = place_samples(y0, y1, size, image.shape[0])
    columns, column_weights = place_samples(x0, x1, size, image.shape[1])
    values = image.astype(np.float32)
    lines = interpolate_lines(values, rows, row_weights)  # (size, W, 3)
    # Gathering lines is three times as fast as gathering columns.
    return cv2.transpose(interpolate_lines(cv2.transpose(lines), columns, column_weights)).astype(
        np.float32, copy=False
    )


def interpolate_lines(
    values: npt.NDArray[Any], before: npt.NDArray[np.intp], weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Interpolate between lines (W, 3) of an image and the lines after them; `weights` are the shares of the latter."""
    lines: npt.NDArray[np.float32] = values[before]
    after = values[before + 1]
    after -= lines
    after *= weights[:, None, None]
    lines += after
    return lines


def place_samples(
    start: float, end: float, size: int, length: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Place `size` evenly spaced samples on an axis of `length` pixels. Returns the pixel before each, and the share of
    the next pixel in it."""
    places = np.clip(np.linspace(start, end, size) * length - 0.5, 0, length - 1)
    before = np.minimum(places.astype(np.intp), length - 2)
    return before, (places - before).astype(np.float32)


def resize_image(image: Image, *, scale: float | None = None, size: int | None = None) -> Image:
    """Resize an image with OpenCV's bilinear interpolation, by a factor or to a square."""
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
