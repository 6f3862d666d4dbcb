"""Finds clips that are copies of one another: the same file twice, or recompressed, scaled, or brightened.

Each clip is reduced to eight gray thumbnails, evenly spaced over its length, minus their mean. The distance between two
clips is the root mean square difference of their thumbnails, in gray levels; identical files have distance 0.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.video.colors import Image
from asl_triton.video.reader import Frame

Thumbnails = npt.NDArray[np.uint8]  # (8, 16, 16)

NUM_THUMBNAILS = 8
SIDE = 16  # pixels
SAMPLED_SIDE = 128  # pixels: larger frames are subsampled
# Measured on two WLASL clips and five of the demo signer: 0.5 to 0.7 for H.264 at CRF 23, 1.0 to 1.7 at CRF 35 and half
# the size, 0.8 to 1.0 for JPEG at quality 20. Different takes of the same demo signer, room, and camera (9 pairs) are
# at least 4.6 apart, different signers at least 14. A clip trimmed by one frame is 0.7 to 5.5 from the original, so it
# is not always found.
MAX_DISTANCE = 2.5  # gray levels
BLOCK = 1024  # clips compared at a time


def make_thumbnail(image_bgr: Image) -> npt.NDArray[np.uint8]:
    """Reduce a frame to 16 x 16 gray pixels."""
    step = max(1, min(image_bgr.shape[:2]) // SAMPLED_SIDE)
    sampled = np.ascontiguousarray(image_bgr[::step, ::step])
    small = cv2.resize(sampled, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)


def make_thumbnails(frames: Iterable[Frame]) -> Thumbnails:
    """Read a clip to its end, and make thumbnails of eight of its frames; shorter clips repeat some."""
    every = [make_thumbnail(frame.image) for frame in frames]
    chosen = np.linspace(0, len(every) - 1, NUM_THUMBNAILS).round().astype(int)
    return np.stack([every[index] for index in chosen])


def find_copies(clips: Sequence[Thumbnails]) -> list[int]:
    """Return, for each clip, the index of the first clip that it is a copy of, directly or transitively, or its own."""
    if not clips:
        return []
    flat = np.stack(clips).reshape(len(clips), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    squares = (flat**2).sum(axis=1)
    limit = MAX_DISTANCE**2 * flat.shape[1]
    first = list(range(len(clips)))
    for start in range(0, len(clips), BLOCK):
        block = slice(start, start + BLOCK)
        distances = squares[block, None] + squares - 2 * flat[block] @ flat.T
        for row, other in zip(*np.nonzero(distances <= limit), strict=True):
            one, two = find_root(first, start + int(row)), find_root(first, int(other))
            first[max(one, two)] = min(one, two)
    return [find_root(first, number) for number in range(len(clips))]


def find_root(first: Sequence[int], number: int) -> int:
    """Return the first clip of a clip's group."""
    while first[number] != number:
        number = first[number]
    return number
