"""Searching for the signer in scenes with demo signers, and the warnings."""

from functools import cache

import cv2
import numpy as np
import pytest

from asl_triton.presets import PRESETS
from asl_triton.signer.detector import find_signer
from asl_triton.signer.search import SEARCHED, frame_signer
from asl_triton.video.colors import Image
from asl_triton.video.reader import Frame
from asl_triton_demo.signer import Placement, RenderedClip, render
from tests.client.signer.test_signer import overlap

WLASL, PERSON = PRESETS["wlasl"], PRESETS["bsl1k-person"]
NUM_FRAMES = 32
Box = tuple[float, float, float, float]


@cache
def render_clip(gloss: str, seed: int, size: tuple[int, int], placement: Placement) -> RenderedClip:
    """Render a clip of the demo signer in a larger picture."""
    return render(gloss, seed, size=size, num_frames=NUM_FRAMES, fps=25, placement=placement)


def read_frames(clip: RenderedClip) -> list[Frame]:
    """Return the first frames of a clip, as the client reads them."""
    return [Frame(image[..., ::-1].copy(), n / clip.fps) for n, image in enumerate(clip.frames[:12])]


def find_box(frames: list[Frame]) -> Box:
    """Return the upper body found, in pixels."""
    estimate = find_signer([frames[index].image for index in SEARCHED])
    height, width = frames[0].image.shape[:2]
    assert estimate.box is not None
    return estimate.box.x0 * width, estimate.box.y0 * height, estimate.box.x1 * width, estimate.box.y1 * height


def paste(frames: list[Frame], picture: Image, left: int, top: int) -> list[Frame]:
    """Paste the same picture onto every frame, like a poster on the wall."""
    pasted = []
    for frame in frames:
        image = frame.image.copy()
        image[top : top + len(picture), left : left + picture.shape[1]] = picture
        pasted.append(Frame(image, frame.time_s))
    return pasted


@pytest.mark.parametrize(
    ("size", "placement"),
    [
        ((1080, 1920), Placement(0.35, 0.3, 0.6)),
        ((1280, 720), Placement(0.9, 0.5, 0.45)),  # a phone
        ((1280, 720), Placement(0.6, 0.4, 0.6)),
        ((640, 640), Placement(0.5, 0.6, 0.5)),
        ((480, 1120), Placement(0.5, 0.75, 0.5)),  # 21:9
    ],
)
@pytest.mark.parametrize("seed", [1_000_000, 1_000_003])
def test_small_signer_is_found_and_fully_shown(size: tuple[int, int], placement: Placement, seed: int) -> None:
    clip = render_clip("help", seed, size, placement)
    frames = read_frames(clip)
    assert clip.signer is not None and overlap(find_box(frames), clip.signer) > 0.5
    framed = frame_signer(frames, WLASL)
    assert framed.warnings == () and framed.signer is not None
    box = framed.signer
    x0, y0, x1, y1 = clip.signer
    assert box.x0 * size[1] <= x0 + 2 and box.x1 * size[1] >= x1 - 2 and box.y0 * size[0] <= y0 + 2
    assert box.y1 * size[0] >= y0 + 0.7 * (y1 - y0)
    shown = next(framed.frames).image
    assert (y1 - y0) / len(shown) > 0.55  # the signer fills the frame as in training


def test_signer_at_the_edge_is_found() -> None:
    clip = render_clip("book", 1_000_002, (720, 1280), Placement(0.6, 0.08, 0.6))
    assert clip.signer is not None and clip.signer[0] < 30
    box = find_box(read_frames(clip))
    assert box[0] == 0 and overlap(box, clip.signer) > 0.5
    shown = next(frame_signer(read_frames(clip), WLASL).frames).image
    assert shown.shape[1] / len(shown) == pytest.approx(4 / 3, abs=0.02)  # the edge is repeated beyond the frame


def test_walking_signer_is_found_at_the_start_position() -> None:
    clip = render_clip("book", 1_000_002, (720, 1280), Placement(0.5, 0.25, 0.6, walks_to=0.5))
    framed = frame_signer(read_frames(clip), WLASL)
    assert framed.signer is not None and framed.warnings == ()
    assert clip.signer is not None and overlap(find_box(read_frames(clip)), clip.signer) > 0.5


@pytest.mark.parametrize("preset", ["wlasl", "bsl1k-person"])
def test_nearest_of_three_people_is_chosen_with_a_warning(preset: str) -> None:
    scales = ((0.8, 1_000_001), (1.0, 1_000_001), (0.8, 1_000_001))
    clips = [render_clip("help", seed, (360, 320), Placement(scale, 0.5, 0.5)) for scale, seed in scales]
    parts = [read_frames(clip) for clip in clips]
    frames = [Frame(np.hstack([f.image for f in three]), three[0].time_s) for three in zip(*parts, strict=True)]
    framed = frame_signer(frames, PRESETS[preset])
    assert "3 people are in the picture" in framed.warnings[0]
    left, _, right, _ = find_box(frames)
    assert (left + right) / 2 == pytest.approx(480, abs=60)


def test_face_on_a_poster_is_not_the_signer() -> None:
    clip = render_clip("help", 1_000_000, (720, 1280), Placement(0.55, 0.25, 0.6))
    poster = render_clip("book", 1_000_003, (480, 400), Placement(1.0, 0.5, 0.5))
    picture = poster.frames[0][..., ::-1]
    frames = paste(read_frames(clip), picture, 800, 60)
    assert clip.signer is not None and overlap(find_box(frames), clip.signer) > 0.5
    assert frame_signer(frames, PERSON).warnings == ()
    # Two moving signers are two people.
    both = [Frame(pasted.image.copy(), pasted.time_s) for pasted in frames]
    for number, frame in enumerate(both):
        frame.image[60:540, 800:1200] = poster.frames[number][..., ::-1]
    assert "2 people" in frame_signer(both, PERSON).warnings[0]
    x0, _, x1, _ = find_box(both)
    assert (x0 + x1) / 2 > 800


def test_lone_poster_is_taken_for_the_signer() -> None:
    """There is no one else, so it may be a person who keeps still."""
    poster = render_clip("book", 1_000_003, (480, 640), Placement(0.8, 0.5, 0.5))
    still = [Frame(read_frames(poster)[0].image, n / 25) for n in range(12)]
    assert frame_signer(still, PERSON).signer is not None


def hide_face(clip: RenderedClip) -> list[Frame]:
    """Return frames in which hair hides the signer's face, as if seen from the side or from behind."""
    assert clip.signer is not None
    x0, y0, x1, y1 = clip.signer
    center, radius = ((x0 + x1) // 2, round(y0 + 0.2 * (y1 - y0))), round(0.2 * (y1 - y0))
    frames = read_frames(clip)
    for frame in frames:
        cv2.circle(frame.image, center, radius, (40, 40, 60), -1)
    return frames


@pytest.mark.parametrize(("preset", "size"), [("bsl1k-person", (540, 960)), ("wlasl", (960, 540))])
def test_hidden_face_gives_a_warning(preset: str, size: tuple[int, int]) -> None:
    frames = hide_face(render_clip("book", 1_000_001, size, Placement(0.6, 0.5, 0.5)))
    framed = frame_signer(frames, PRESETS[preset])
    assert framed.signer is None and "no signer was found" in framed.warnings[0]
    assert np.array_equal(next(framed.frames).image, frames[0].image)


@pytest.mark.parametrize("gray", [0, 255])
def test_plain_black_or_white_video_has_no_signer(gray: int) -> None:
    frames = [Frame(np.full((1080, 1920, 3), gray, np.uint8), n / 25) for n in range(8)]
    assert find_signer([frame.image for frame in frames]).box is None
    assert "no signer was found" in frame_signer(frames, PERSON).warnings[0]


@pytest.mark.parametrize(("x", "y", "side"), [(-100, 400, 600), (1900, 1060, 60), (0, 0, 1080), (2500, 10, 90)])
def test_face_at_the_edge_of_the_frame_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch, x: float, y: float, side: float
) -> None:
    """The cascade may find faces anywhere, so the upper body below one may be far outside the frame."""
    face = np.array([[x, y, side, side]], float)
    monkeypatch.setattr("asl_triton.signer.detector.track_faces", lambda images: [np.repeat(face, len(images), axis=0)])
    estimate = find_signer([np.zeros((1080, 1920, 3), np.uint8)] * 3)
    assert estimate.box is None or estimate.box.x0 < estimate.box.x1
