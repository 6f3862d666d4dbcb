"""Locating the signer by the face, and choosing the part of the frame to show."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from asl_triton.presets import PRESETS
from asl_triton.signer.detector import SignerEstimate, find_signer, group_faces
from asl_triton.signer.region import choose_region, cut_region
from asl_triton.signer.search import frame_signer
from asl_triton.video.colors import Image
from asl_triton.video.reader import Frame, open_video

OFFICIAL = {"07068": (234, 17, 524, 414), "07069": (462, 44, 949, 720)}  # in pixels, from WLASL_v0.3.json
WLASL, PERSON = PRESETS["wlasl"], PRESETS["bsl1k-person"]


def read_clip(shared_folder: Path, clip: str) -> list[Frame]:
    with open_video(shared_folder / "wlasl" / "videos" / f"{clip}.mp4") as video:
        return list(video)


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Compute the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both)


def place_on_wall(image: Image, width: int, height: int, share: float) -> Image:
    """Build a frame with a smaller image on a plain wall."""
    small = cv2.resize(image, None, fx=share * height / len(image), fy=share * height / len(image))
    canvas = np.full((height, width, 3), (120, 130, 125), np.uint8)
    small = small[:, max(0, (small.shape[1] - width) // 2) :][:, :width]
    top, left = height - len(small) - height // 10, (width - small.shape[1]) // 3
    canvas[top : top + len(small), left : left + small.shape[1]] = small
    return canvas


@pytest.mark.parametrize("clip", OFFICIAL)
def test_box_is_close_to_the_official_one(shared_folder: Path, clip: str) -> None:
    frames = read_clip(shared_folder, clip)
    height, width = frames[0].image.shape[:2]
    box = frame_signer(frames, PERSON).signer
    assert box is not None and box.source == "face"
    found = (box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)
    assert overlap(found, OFFICIAL[clip]) >= 0.85


@pytest.mark.parametrize("clip", OFFICIAL)
def test_signer_who_fills_the_frame_gets_the_whole_frame(shared_folder: Path, clip: str) -> None:
    frames = read_clip(shared_folder, clip)
    framed = frame_signer(frames, WLASL)
    assert (framed.signer, framed.warnings) == (None, ())
    assert all(np.array_equal(one.image, other.image) for one, other in zip(framed.frames, frames, strict=True))


@pytest.mark.parametrize("clip", OFFICIAL)
@pytest.mark.parametrize(("width", "height", "share"), [(1920, 1080, 0.45), (1080, 1920, 0.33)])
def test_small_signer_is_cut_out_of_the_frame(
    shared_folder: Path, clip: str, width: int, height: int, share: float
) -> None:
    whole = read_clip(shared_folder, clip)
    small = [Frame(place_on_wall(frame.image, width, height, share), frame.time_s) for frame in whole]
    framed = frame_signer(small, WLASL)
    shown = list(framed.frames)
    assert framed.signer is not None and len(shown) == len(whole)
    height, width = shown[0].image.shape[:2]
    assert width / height == pytest.approx(4 / 3, abs=0.02)
    face = find_signer([shown[0].image, shown[4].image, shown[8].image]).face
    assert face is not None and 0.18 < face[2] / height < 0.32  # as in the original


def test_missing_person_gives_a_warning_if_it_matters() -> None:
    wall = [Frame(np.full((480, 640, 3), 120, np.uint8), n / 25) for n in range(20)]
    framed = frame_signer(wall, PERSON)
    assert framed.signer is None and "no signer was found" in framed.warnings[0]
    assert len(list(framed.frames)) == 20
    assert frame_signer(wall, WLASL).warnings == ()
    tall = [Frame(np.full((640, 480, 3), 120, np.uint8), 0.0)]
    assert "no signer was found" in frame_signer(tall, WLASL).warnings[0]


def test_larger_of_two_faces_is_chosen_with_a_warning(shared_folder: Path) -> None:
    image = read_clip(shared_folder, "07069")[0].image
    near = cv2.resize(image, (1280, 720))
    far = cv2.resize(image, (640, 360))
    both = np.full((720, 1920, 3), 120, np.uint8)
    both[:, :1280], both[180:540, 1280:] = near, far
    framed = frame_signer([Frame(both, n / 25) for n in range(12)], PERSON)
    assert "2 people are in the picture" in framed.warnings[0]
    assert framed.signer is not None and framed.signer.x1 < 0.6


def test_empty_clip_stays_empty() -> None:
    assert list(frame_signer([], PERSON).frames) == []


def test_faces_of_one_person_are_grouped() -> None:
    faces = [np.array(face, float) for face in ((100, 50, 40, 40), (104, 52, 42, 42), (300, 60, 41, 41))]
    assert [len(group) for group in group_faces(faces)] == [2, 1]


def test_region_repeats_the_edges_of_the_frame() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert np.array_equal(cut_region(image, (1, 1, 5, 3)), image[1:3, 1:5])
    beyond = cut_region(image, (-1, 0, 7, 4))
    assert beyond.shape == (4, 8, 3)
    assert np.array_equal(beyond[:, 0], image[:, 0]) and np.array_equal(beyond[:, -1], image[:, -1])


def test_no_region_is_chosen_if_nothing_is_found() -> None:
    assert choose_region(SignerEstimate(None, None, 0), 1920, 1080) is None
