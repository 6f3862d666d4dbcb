"""Finds the signer by the face: OpenCV's frontal-face cascade on a few frames, and the upper body measured from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.results import SignerBox
from asl_triton.video.colors import Image

# Frames are searched at the first of these sizes (pixels of the longer side), then at the next if no face is found.
SEARCH_SIDES = (320, 800)
MIN_FACE = 20  # pixels at that size: smaller ones are missed as often as found
NEIGHBORS = 3  # detections that a face needs
# The upper body, in widths of the face as the cascade measures it: from above the hair to the waist, with room for the
# elbows. Measured on WLASL's official boxes of 07068 and 07069, which end at the frame's edge.
SIDE, ABOVE, BELOW = 0.82, 0.25, 3.8
ALIKE = 0.5  # of the faces' width: how far apart two detections of one face may be
MANY_SHARE = 0.5  # of the frames: a face in fewer of them may be a false detection


@dataclass(frozen=True)
class SignerEstimate:
    """What was found in some frames of a clip.

    `face` is the largest one: left, top and width in pixels; `box` is the upper body below it. Both are None where no
    face was found. `num_people` is how many faces are in most of the frames.
    """

    box: SignerBox | None
    face: tuple[float, float, float] | None
    num_people: int


def find_signer(images_bgr: Sequence[Image]) -> SignerEstimate:
    """Find the signer in frames of one clip, uint8 BGR (H, W, 3), all of one size.

    The confidence is the share of the frames in which the face is found.
    """
    height, width = images_bgr[0].shape[:2]
    found = [find_faces(image) for image in images_bgr]
    tracks = group_faces([face for faces in found for face in faces])
    if not tracks:
        return SignerEstimate(None, None, 0)
    seen = [track for track in tracks if len(track) >= MANY_SHARE * len(images_bgr)]
    # The largest face that is not a chance find; of equal ones, the one in the middle.
    best = max(seen or tracks, key=lambda track: np.median(track[:, 2]) if seen else len(track))
    x, y, side = np.median(best, axis=0)[:3]
    box = SignerBox.from_pixels(
        (x - SIDE * side, y - ABOVE * side, x + (1 + SIDE) * side, y + BELOW * side), width, height, source="face"
    )
    confidence = min(len(best) / len(images_bgr), 1.0)
    confident = replace(box, confidence=round(confidence, 3))
    return SignerEstimate(confident, (float(x), float(y), float(side)), max(len(seen), 1))


def find_faces(image_bgr: Image) -> npt.NDArray[np.float64]:
    """The frontal faces in a frame: left, top, width and height in pixels, (N, 4)."""
    gray = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
    for side in SEARCH_SIDES:
        scale = min(side / max(gray.shape), 1.0)
        small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
        faces = load_cascade().detectMultiScale(
            cv2.equalizeHist(small), scaleFactor=1.1, minNeighbors=NEIGHBORS, minSize=(MIN_FACE, MIN_FACE)
        )
        if len(faces) or scale == 1:
            break
    return np.asarray(faces, np.float64).reshape(-1, 4) / scale


@cache
def load_cascade() -> cv2.CascadeClassifier:
    """OpenCV's own cascade of frontal faces."""
    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_alt2.xml"))


def group_faces(faces: Sequence[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.float64]]:
    """Detections of the same face, over frames: where the centers are close and the sizes alike."""
    groups: list[list[npt.NDArray[np.float64]]] = []
    for face in faces:
        center, side = face[:2] + face[2:] / 2, face[2]
        for group in groups:
            other = np.median(group, axis=0)
            apart = np.abs(center - (other[:2] + other[2:] / 2)).max()
            if apart < ALIKE * max(side, other[2]) and 0.5 < side / other[2] < 2:
                group.append(face)
                break
        else:
            groups.append([face])
    return [np.array(group) for group in groups]
