"""Finds the signer by the face: OpenCV's frontal-face cascade on a few frames, and the upper body measured from it."""

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

# How a frame is searched until a face is found: at a size, in pixels of the longer side, and with the contrast of each
# part raised or not, which finds dark faces on light ground. Raising it first would lose other faces, as equalizing the
# whole picture does: at one size it finds 77 of the demo signer's 96 faces, and gray levels as they are 84.
SEARCHES = ((320, False), (800, False), (1280, False), (800, True))
CLIP_LIMIT = 2.0  # of the contrast
MIN_FACE = 20  # pixels at that size: smaller ones are missed as often as found
# Detections that a face needs. If no face has them, the one with the most is taken, to be looked for in other frames.
NEIGHBORS = 3
TRACKED_FACE = 40  # pixels: how wide a face is made when another frame is searched for it
# The upper body, in widths of the face as the cascade measures it: from above the hair to the waist, with room for the
# elbows. Measured on WLASL's official boxes of 07068 and 07069, which end at the frame's edge.
SIDE, ABOVE, BELOW = 0.82, 0.25, 3.8
ALIKE = 0.5  # of the faces' width: how far apart two detections of one face may be
MANY_SHARE = 0.5  # of the frames: a face in fewer of them may be a false detection
LEAST_BELOW = 1.5  # widths of a face between its top and the frame's bottom; with less, the hands are out of view
# A face is a picture's where its upper body changes by less than this share of what changes most about another one.
STILL_SHARE = 0.25
LEAST_MOTION = 0.5  # gray levels: less is noise
MOTION_SIDE = 48  # pixels that an upper body is shrunk to before it is compared


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

    Of several people it is the one with the largest face, except that a face that keeps still while another one moves
    is a picture's. Where no face is found, Intel's detector of signers is asked, if it was fetched. The confidence is
    the share of the frames in which the face is found.
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
    # The largest face that is not a chance find; of chance finds, the one in most frames.
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
    """Whether a face (N, 4) is in so many of the frames that it is not a chance find."""
    return len(track) >= MANY_SHARE * len(images)


def find_upper_body(face: Face) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the upper body below a face."""
    x, y, side = (float(value) for value in face[:3])
    return x - SIDE * side, y - ABOVE * side, x + (1 + SIDE) * side, y + BELOW * side


def measure_face(person: Face) -> Face:
    """The face of a person, of whom left, top, right and bottom are known, as the cascade would measure it."""
    x0, y0, x1 = (float(value) for value in person[:3])
    side = (x1 - x0) / (1 + 2 * SIDE)
    return np.array([x0 + SIDE * side, y0 + ABOVE * side, side, side])


def track_faces(images_bgr: Sequence[Image]) -> list[Face]:
    """Search for faces in the first frame, and around each in the others: one (N, 4) per face, of the frames with it.

    If no face of the first frame is in the others too, the last one is searched.
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
    """The frontal faces in a frame (N, 4); `takes_weak` if one of few detections is better than none."""
    gray = to_gray(image_bgr)
    weak: list[tuple[int, Face]] = []  # the best one of each search
    # Of frames that are smaller than some of the sizes, each search once.
    searches = dict.fromkeys((min(side / max(gray.shape), 1.0), contrast) for side, contrast in SEARCHES)
    for scale, raises_contrast in searches:
        faces, counts = detect_faces(gray, scale, raises_contrast=raises_contrast)
        if (counts >= NEIGHBORS).any():
            return np.asarray(faces[counts >= NEIGHBORS])
        if len(faces) and takes_weak:
            weak.append((counts.max(), faces[counts.argmax()]))
    return np.stack([max(weak, key=lambda pair: pair[0])[1]]) if weak else np.empty((0, 4))


def find_face_near(image_bgr: Image, face: Face) -> Face | None:
    """The same face in another frame, no further than its width away."""
    x, y, side = face[:3]
    left, top = max(round(x - side), 0), max(round(y - side), 0)
    part = to_gray(image_bgr[top : round(y + 2 * side), left : round(x + 2 * side)])
    for raises_contrast in (False, True):
        found, counts = detect_faces(part, min(TRACKED_FACE / side, 1.0), raises_contrast=raises_contrast)
        if len(found):
            return np.asarray(found[counts.argmax()] + (left, top, 0, 0))
    return None


def detect_faces(gray: Gray, scale: float, *, raises_contrast: bool) -> tuple[Face, npt.NDArray[np.int64]]:
    """The faces in a picture that is shrunk first, in its own pixels (N, 4), and how many detections each has (N,)."""
    small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
    if raises_contrast:
        small = cv2.createCLAHE(CLIP_LIMIT).apply(small)
    faces, counts = load_cascade().detectMultiScale2(
        small, scaleFactor=1.1, minNeighbors=1, minSize=(MIN_FACE, MIN_FACE)
    )
    return np.asarray(faces, np.float64).reshape(-1, 4) / scale, np.asarray(counts, np.int64).reshape(-1)


def drop_pictures(tracks: Sequence[Face], images_bgr: Sequence[Image]) -> list[Face]:
    """Faces without those that keep still while another one moves."""
    if len(tracks) < 2:
        return list(tracks)
    motions = [measure_motion(np.median(track, axis=0), images_bgr) for track in tracks]
    least = STILL_SHARE * max(motions) if max(motions) >= LEAST_MOTION else 0.0
    return [track for track, motion in zip(tracks, motions, strict=True) if motion >= least]


def measure_motion(face: Face, images_bgr: Sequence[Image]) -> float:
    """How much the upper body below a face changes between the first and the last frame, in gray levels."""
    x0, y0, x1, y1 = (max(round(value), 0) for value in find_upper_body(face))
    bodies = [to_gray(image[y0:y1, x0:x1]) for image in (images_bgr[0], images_bgr[-1])]
    first, last = (cv2.resize(body, (MOTION_SIDE, MOTION_SIDE), interpolation=cv2.INTER_AREA) for body in bodies)
    return float(cv2.absdiff(first, last).mean())


def to_gray(image_bgr: Image) -> Gray:
    """The gray levels (H, W) of a picture."""
    return np.asarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY), np.uint8)


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
