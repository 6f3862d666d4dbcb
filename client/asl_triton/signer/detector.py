"""Finds the signer's face with OpenCV's frontal-face cascade on a few frames, and derives the upper body from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.results import MIN_BOX_SIDE, SignerBox
from asl_triton.signer.person_detector import find_people
from asl_triton.video.colors import Image

Gray = npt.NDArray[np.uint8]
Face = npt.NDArray[np.float64]  # left, top, width and height in pixels

# The searches to try until a face is found: the length of a frame's longer side in pixels, and whether to raise the
# local contrast, which finds dark faces on a light background. Raising it first would lose other faces, as equalizing
# the whole picture does: at one size, that finds 77 of the demo signer's 96 faces, against 84 without it.
SEARCHES = ((320, False), (800, False), (1280, False), (800, True))
CLIP_LIMIT = 2.0  # of the local contrast
MIN_FACE = 20  # pixels at that size; smaller faces are missed as often as found
# Detections that a face needs. If no face has that many, the one with the most is looked for in other frames.
NEIGHBORS = 3
TRACKED_FACE = 40  # pixels; other frames are scaled so that the face looked for is this wide
# The upper body, in widths of the face as the cascade measures it: from above the hair to the waist, with room for the
# elbows. Measured on WLASL's official boxes of 07068 and 07069, which end at the frame's edge.
SIDE, ABOVE, BELOW = 0.82, 0.25, 3.8
ALIKE = 0.5  # of the face's width: how far apart two detections of one face may be
MANY_SHARE = 0.5  # of the frames; a face in fewer of them may be a false detection
LEAST_BELOW = 1.5  # face widths between the face's top and the frame's bottom; with less, the hands are out of view
# A face belongs to a picture if its upper body changes by less than this share of the one that changes most.
STILL_SHARE = 0.25
LEAST_MOTION = 0.5  # gray levels; less is noise
MOTION_SIDE = 48  # pixels; upper bodies are shrunk to this before they are compared


@dataclass(frozen=True)
class SignerEstimate:
    """What was found in some frames of a clip.

    `face` is the signer's: left, top and width in pixels; `box` is the upper body below it. Both are None if no face
    was found. `num_people` is how many faces are in most of the frames.
    """

    box: SignerBox | None
    face: tuple[float, float, float] | None
    num_people: int


def find_signer(images_bgr: Sequence[Image]) -> SignerEstimate:
    """Find the signer in frames of one clip, uint8 BGR (H, W, 3), all of one size.

    If there are several people, the signer is the one with the largest face. A face that stays still while another one
    moves belongs to a picture and is ignored. If no face is found, Intel's signer detector is used if it was fetched.
    The confidence is the share of the frames in which the face is found.
    """
    height, width = images_bgr[0].shape[:2]
    source = "face"
    tracks = track_faces(images_bgr)
    if not any(is_many(track, images_bgr) for track in tracks) and (people := find_people(images_bgr)) is not None:
        source, tracks = "person", group_faces([measure_face(person) for person in people]) or tracks
    if not tracks:
        return SignerEstimate(None, None, 0)
    seen = [track for track in tracks if is_many(track, images_bgr)]
    moving = drop_pictures(seen, images_bgr)
    # The largest face that is not a chance find, or else the chance find in the most frames.
    best = max(moving or tracks, key=lambda track: np.median(track[:, 2]) if moving else len(track))
    face = np.median(best, axis=0)
    inside = np.clip(find_upper_body(face), 0, (width, height, width, height))
    if (inside[2:] - inside[:2] < (MIN_BOX_SIDE * width, MIN_BOX_SIDE * height)).any():
        return SignerEstimate(None, None, 0)
    box = SignerBox.from_pixels(tuple(inside.tolist()), width, height, source=source)
    confident = replace(box, confidence=round(min(len(best) / len(images_bgr), 1.0), 3))
    x, y, side = (float(value) for value in face[:3])
    return SignerEstimate(confident, (x, y, side), max(len(moving), 1))


def is_many(track: Face, images: Sequence[Image]) -> bool:
    """Return whether a face (N, 4) is in enough of the frames not to be a chance find."""
    return len(track) >= MANY_SHARE * len(images)


def find_upper_body(face: Face) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the upper body below a face."""
    x, y, side = (float(value) for value in face[:3])
    return x - SIDE * side, y - ABOVE * side, x + (1 + SIDE) * side, y + BELOW * side


def measure_face(person: Face) -> Face:
    """Return the face of a person (left, top, right, bottom) as the cascade would measure it."""
    x0, y0, x1 = (float(value) for value in person[:3])
    side = (x1 - x0) / (1 + 2 * SIDE)
    return np.array([x0 + SIDE * side, y0 + ABOVE * side, side, side])


def track_faces(images_bgr: Sequence[Image]) -> list[Face]:
    """Find faces in the first frame, and follow each in the others: one (N, 4) per face, for the N frames that show it.

    If no face of the first frame is in the others too, start from the last frame.
    """
    chances: list[Face] = []
    for number in sorted({0, len(images_bgr) - 1}):
        others = [other for place, other in enumerate(images_bgr) if place != number]
        tracks = []
        for face in find_faces(images_bgr[number], takes_weak=len(others) > 0):
            if len(images_bgr[number]) - face[1] < LEAST_BELOW * face[2]:
                continue
            again = [find_face_near(other, face) for other in others]
            tracks.append(np.stack([face, *(found for found in again if found is not None)]))
        if any(is_many(track, images_bgr) for track in tracks):
            return tracks
        chances += tracks
    return chances


def find_faces(image_bgr: Image, *, takes_weak: bool = True) -> Face:
    """Find the frontal faces in a frame (N, 4). With `takes_weak`, one with too few detections is better than none."""
    gray = to_gray(image_bgr)
    weak: list[tuple[int, Face]] = []  # the best one of each search
    # In frames smaller than some of the sizes, searches coincide, so drop duplicates.
    searches = dict.fromkeys((min(side / max(gray.shape), 1.0), contrast) for side, contrast in SEARCHES)
    for scale, raises_contrast in searches:
        faces, counts = detect_faces(gray, scale, raises_contrast=raises_contrast)
        if (counts >= NEIGHBORS).any():
            return np.asarray(faces[counts >= NEIGHBORS])
        if len(faces) and takes_weak:
            weak.append((counts.max(), faces[counts.argmax()]))
    return np.stack([max(weak, key=lambda pair: pair[0])[1]]) if weak else np.empty((0, 4))


def find_face_near(image_bgr: Image, face: Face) -> Face | None:
    """Find the same face in another frame, at most its own width away."""
    x, y, side = face[:3]
    left, top = max(round(x - side), 0), max(round(y - side), 0)
    part = to_gray(image_bgr[top : round(y + 2 * side), left : round(x + 2 * side)])
    for raises_contrast in (False, True):
        found, counts = detect_faces(part, min(TRACKED_FACE / side, 1.0), raises_contrast=raises_contrast)
        if len(found):
            return np.asarray(found[counts.argmax()] + (left, top, 0, 0))
    return None


def detect_faces(gray: Gray, scale: float, *, raises_contrast: bool) -> tuple[Face, npt.NDArray[np.int64]]:
    """Detect faces in a shrunk picture: their places in original pixels (N, 4), and numbers of detections (N,)."""
    small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
    if raises_contrast:
        small = cv2.createCLAHE(CLIP_LIMIT).apply(small)
    faces, counts = load_cascade().detectMultiScale2(
        small, scaleFactor=1.1, minNeighbors=1, minSize=(MIN_FACE, MIN_FACE)
    )
    return np.asarray(faces, np.float64).reshape(-1, 4) / scale, np.asarray(counts, np.int64).reshape(-1)


def drop_pictures(tracks: Sequence[Face], images_bgr: Sequence[Image]) -> list[Face]:
    """Drop faces that stay still while another one moves."""
    if len(tracks) < 2:
        return list(tracks)
    motions = [measure_motion(np.median(track, axis=0), images_bgr) for track in tracks]
    least = STILL_SHARE * max(motions) if max(motions) >= LEAST_MOTION else 0.0
    return [track for track, motion in zip(tracks, motions, strict=True) if motion >= least]


def measure_motion(face: Face, images_bgr: Sequence[Image]) -> float:
    """Measure how much the upper body below a face changes between the first and last frames, in gray levels."""
    x0, y0, x1, y1 = (max(round(value), 0) for value in find_upper_body(face))
    bodies = [to_gray(image[y0:y1, x0:x1]) for image in (images_bgr[0], images_bgr[-1])]
    first, last = (cv2.resize(body, (MOTION_SIDE, MOTION_SIDE), interpolation=cv2.INTER_AREA) for body in bodies)
    return float(cv2.absdiff(first, last).mean())


def to_gray(image_bgr: Image) -> Gray:
    """Convert a picture to gray levels (H, W)."""
    return np.asarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY), np.uint8)


@cache
def load_cascade() -> cv2.CascadeClassifier:
    """Load OpenCV's own cascade of frontal faces."""
    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_alt2.xml"))


def group_faces(faces: Sequence[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.float64]]:
    """Group detections of the same face in several frames: their centers are close and their sizes similar."""
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
