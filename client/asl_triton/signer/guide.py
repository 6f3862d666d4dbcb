"""Advises signers how to sit in front of the camera, for the size and position that the networks saw in training."""

from typing import Literal

import cv2

from asl_triton.signer.detector import SignerEstimate
from asl_triton.signer.region import SMALLEST_FACE
from asl_triton.video.colors import Image

# Left and right are the signer's own.
Advice = Literal[
    "more light",
    "no face",
    "move closer",
    "move back",
    "move left",
    "move right",
    "move up",
    "move down",
    "good",
]
DARKEST = 45.0  # mean gray level out of 255; below it, faces are not found and hands are noise
# Of the frame's height. Faces take up 0.2 to 0.35 of it in webcam recordings; with larger ones, hands leave the frame.
LARGEST_FACE = 0.36
MAX_OFF_CENTER = 0.16  # of the frame's width, from the middle of the face to the middle of the frame
HIGHEST_TOP, LOWEST_TOP = 0.02, 0.4  # of the frame's height, the top of the face: room for the hair, and for the hands


AGREES = 2  # checks in a row before the advice changes
MISSED = 4  # checks in a row without a face, because hands and turns of the head hide it while someone signs


class AdviceFilter:
    """Keeps advice steady: `advice` starts as the first one, and changes when several checks in a row agree."""

    def __init__(self) -> None:
        self.advice: Advice | None = None
        self._newest: Advice | None = None
        self._times = 0

    def add(self, advice: Advice) -> Advice:
        """Take the advice of the newest check, and return the advice to give."""
        self._times = self._times + 1 if advice == self._newest else 1
        self._newest = advice
        if self.advice is None or self._times >= (MISSED if advice == "no face" else AGREES):
            self.advice = advice
        return self.advice


def choose_advice(image_bgr: Image, estimate: SignerEstimate) -> Advice:
    """Choose what the signer in a frame, uint8 BGR (H, W, 3), should do first, given where the face is; or "good".

    The frame is not mirrored: a signer at its left moves to their own left to reach the middle.
    """
    height, width = image_bgr.shape[:2]
    if estimate.face is None:
        gray = cv2.cvtColor(cv2.resize(image_bgr, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        return "more light" if float(gray.mean()) < DARKEST else "no face"
    x, y, side = estimate.face
    around = image_bgr[max(round(y), 0) : round(y + side), max(round(x), 0) : round(x + side)]
    if around.size and float(cv2.cvtColor(around, cv2.COLOR_BGR2GRAY).mean()) < DARKEST:
        return "more light"
    if side < SMALLEST_FACE * height:
        return "move closer"
    if side > LARGEST_FACE * height:
        return "move back"
    off_center = (x + side / 2) / width - 0.5
    if abs(off_center) > MAX_OFF_CENTER:
        return "move left" if off_center < 0 else "move right"
    if y < HIGHEST_TOP * height:
        return "move down"
    return "move up" if y > LOWEST_TOP * height else "good"
