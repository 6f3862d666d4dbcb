"""Tracking the signer in a live stream, which ignores brief changes, and advice for the signer."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import pytest

from asl_triton.live.window import LiveWindow
from asl_triton.presets import PRESETS
from asl_triton.results import SignerBox
from asl_triton.signer.detector import SignerEstimate, find_signer
from asl_triton.signer.guide import choose_advice
from asl_triton.signer.search import WHOLE, Framing
from asl_triton.signer.tracker import CHECK_EVERY_S, SignerTracker
from asl_triton.video.colors import Image
from asl_triton.video.reader import open_video

WLASL, PERSON = PRESETS["wlasl"], PRESETS["bsl1k-person"]
SIZE = (720, 1280)  # (H, W)
WALL = np.full((*SIZE, 3), (120, 130, 125), np.uint8)


@pytest.fixture(scope="module")
def signing(shared_folder: Path) -> list[Image]:
    """Frames of a person, 640 x 360."""
    with open_video(shared_folder / "wlasl" / "videos" / "07069.mp4") as video:
        return [cv2.resize(frame.image, (640, 360)) for frame in video]


def place_on_wall(image: Image, left: int, top: int = 330) -> Image:
    """Build a frame with a small picture on a wall."""
    frame = WALL.copy()
    frame[top : top + len(image), left : left + image.shape[1]] = image
    return frame


def follow(tracker: SignerTracker, frames: list[Image], start_s: float = 0.0) -> list[Framing]:
    """Return the framing after each of these frames, which are one check interval apart."""
    framings = []
    for number, frame in enumerate(frames):
        tracker.check(frame, start_s + number * CHECK_EVERY_S)
        framings.append(tracker.framing)
    return framings


@pytest.mark.parametrize("preset", [WLASL, PERSON], ids=lambda preset: preset.name)
def test_signer_is_found_at_the_start_and_the_box_ignores_head_movement(signing: list[Image], preset: object) -> None:
    tracker = SignerTracker(preset)  # type: ignore[arg-type]
    framings = follow(tracker, [place_on_wall(image, 20) for image in signing[:40:5]])
    assert framings[0] == WHOLE and framings[1] != WHOLE
    assert len(set(framings[1:])) == 1
    box = framings[1].signer
    assert box is not None and box.source == "face" and box.x1 < 0.6 and box.y0 > 0.3


def test_only_lasting_movements_are_followed(signing: list[Image]) -> None:
    left, right = place_on_wall(signing[0], 20), place_on_wall(signing[0], 620)
    tracker = SignerTracker(WLASL)
    here, *_ = follow(tracker, [left] * 3)[2:]
    assert follow(tracker, [right, left, left], start_s=10) == [here] * 3
    moved = follow(tracker, [right, right, right], start_s=20)
    assert moved[0] == here and moved[1] == moved[2] != here
    assert moved[1].signer is not None and moved[1].signer.x0 > 0.45


def test_box_is_kept_while_the_signer_is_not_visible(signing: list[Image]) -> None:
    tracker = SignerTracker(PERSON)
    found = follow(tracker, [place_on_wall(signing[0], 20)] * 2)[-1]
    assert found != WHOLE
    assert follow(tracker, [WALL] * 5, start_s=10) == [found] * 5
    assert not tracker.is_missing


def test_missing_signer_is_reported_only_for_models_that_need_one() -> None:
    for preset, is_missing in ((PERSON, True), (WLASL, False)):
        tracker = SignerTracker(preset)
        assert set(follow(tracker, [WALL] * 4)) == {WHOLE}
        assert tracker.is_missing == is_missing


@pytest.mark.parametrize(
    ("options", "frame"),
    [
        ({"signer": SignerBox(0.5, 0.4, 0.8, 0.9)}, WALL),
        ({"finds": False}, WALL),
        ({}, WALL[:360, :480]),  # as small as the training videos
    ],
    ids=["box given", "off", "small"],
)
def test_no_search_runs_if_it_is_unnecessary_or_turned_off(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], frame: Image
) -> None:
    get_num_searches = count_searches(monkeypatch)
    tracker = SignerTracker(WLASL, **options)  # type: ignore[arg-type]
    (framing,) = set(follow(tracker, [frame] * 5))
    assert (framing == WHOLE) == ("signer" not in options)
    assert get_num_searches() == 0 and tracker.advice is None


def test_number_of_searches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks a minute at 25 frames per second without a signer, then sets the clock back."""
    get_num_searches = count_searches(monkeypatch)
    tracker = SignerTracker(PERSON)
    for number in range(60 * 25):
        tracker.check(WALL, 100 + number / 25)
    assert get_num_searches() <= 60 / CHECK_EVERY_S + 3
    tracker.check(WALL, 5.0)
    assert get_num_searches() <= 60 / CHECK_EVERY_S + 4


def count_searches(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    calls: list[int] = []

    def find(images: list[Image]) -> SignerEstimate:
        calls.append(len(images))
        return find_signer(images)

    monkeypatch.setattr("asl_triton.signer.tracker.estimate_signer", find)
    return lambda: sum(calls)


def test_window_never_mixes_two_framings() -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:, 640:] = 200
    dark, bright = (Framing((x, 100, x + 400, 400), None, SIZE) for x in (100, 800))
    window = LiveWindow()
    window.prepare(WLASL)
    shots = []
    for n in range(100):
        window.push(image, n / 25, n / 25, dark if n < 50 else bright)
        if (snapshot := window.take()) is not None:
            levels = set(np.unique(snapshot.frames))
            assert levels in ({0}, {200})
            shots.append((snapshot.timing.shot, levels.pop()))
    assert [level for level, _ in groupby(level for _, level in shots)] == [0, 200]
    assert len({shot for shot, _ in shots}) == 2


@pytest.mark.parametrize(
    ("width", "left", "top", "advice"),
    [
        (1280, 0, 0, "good"),
        (600, 340, 120, "move closer"),
        (1280, -480, 0, "move left"),  # the frame is not mirrored
        (1280, 480, 0, "move right"),
        (1280, 0, 320, "move up"),
        (1280, 0, -90, "move down"),
        (1900, -310, 0, "move back"),
    ],
)
def test_advice_matches_the_position_of_the_signer(
    signing: list[Image], width: int, left: int, top: int, advice: str
) -> None:
    scaled = cv2.resize(signing[0], (width, round(width * 9 / 16)))
    frame = WALL.copy()
    source = scaled[max(-top, 0) :, max(-left, 0) :]
    top, left = max(top, 0), max(left, 0)
    source = source[: SIZE[0] - top, : SIZE[1] - left]
    frame[top : top + len(source), left : left + source.shape[1]] = source
    assert choose_advice(frame, find_signer([frame])) == advice


def test_advice_for_dark_and_empty_pictures(signing: list[Image]) -> None:
    dark = (place_on_wall(signing[0], 300) // 12).astype(np.uint8)
    assert choose_advice(dark, find_signer([dark])) == "more light"
    assert choose_advice(WALL, find_signer([WALL])) == "no face"


def test_advice_is_steady(signing: list[Image]) -> None:
    tracker = SignerTracker(WLASL, guides=True)
    good, far, wall = cv2.resize(signing[0], SIZE[::-1]), place_on_wall(signing[0][:, 40:600], 340, 330), WALL
    advice = []
    for number, frame in enumerate([good, far, good, wall, wall, wall, far, far, wall, wall, wall, wall]):
        tracker.check(frame, number * CHECK_EVERY_S)
        advice.append(tracker.advice)
    assert advice == ["good"] * 7 + ["move closer"] * 4 + ["no face"]
