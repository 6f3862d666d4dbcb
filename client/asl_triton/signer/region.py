"""Chooses the part of a frame to show to a network that was trained on whole frames."""

import cv2
import numpy as np

from asl_triton.signer.detector import SignerEstimate
from asl_triton.video.colors import Image

# The width of the face as a share of the frame's height: 0.24 to 0.28 in WLASL's clips, 0.2 to 0.26 in the demo
# signer's, 0.2 to 0.35 at a webcam.
TYPICAL_FACE = 0.25
SMALLEST_FACE = 0.15  # below it, a region around the signer is cut out
ASPECT = 4 / 3  # of the region: training videos were 4:3 to 16:9
ABOVE = 0.7  # face widths between the top of the face and the top of the region


def choose_region(estimate: SignerEstimate, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of the part of a frame to show, in pixels; None for the whole frame.

    The part is a 4:3 region, from above the head to the waist, in which the face is as large as in training. It is only
    used if the signer is much smaller, or the frame is taller than wide. It may extend beyond the frame's edges.
    """
    if estimate.face is None:
        return None
    x, y, side = estimate.face
    if side >= SMALLEST_FACE * height and width >= height:
        return None
    region_height = side / TYPICAL_FACE
    region_width = ASPECT * region_height
    left, top = x + side / 2 - region_width / 2, y - ABOVE * side
    return round(left), round(top), round(left + region_width), round(top + region_height)


def cut_region(image: Image, region: tuple[int, int, int, int]) -> Image:
    """Cut a region out of an image (H, W, 3). Outside the image, its edge pixels are repeated."""
    height, width = image.shape[:2]
    left, top, right, bottom = region
    inside = image[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    borders = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    if not any(borders):
        return inside
    return cv2.copyMakeBorder(inside, *borders, borderType=cv2.BORDER_REPLICATE).astype(np.uint8, copy=False)
