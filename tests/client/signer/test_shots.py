"""Finding the signer in each shot of a film, and given boxes."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from asl_triton.presets import PRESETS
from asl_triton.results import SignerBox
from asl_triton.signer.search import WHOLE, FilmFramer, choose_by_box, frame_signer
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import crop_frame
from asl_triton.video.reader import Frame, open_video

WLASL, PERSON = PRESETS["wlasl"], PRESETS["bsl1k-person"]
SHOT = 20  # frames


@pytest.fixture(scope="module")
def film(shared_folder: Path) -> list[Frame]:
    """A small person at the left of a gray wall, an empty blue one, and a small person at the right of a green one."""
    with open_video(shared_folder / "wlasl" / "videos" / "07069.mp4") as video:
        images = [cv2.resize(frame.image, (560, 315)) for frame, _ in zip(video, range(SHOT), strict=False)]
    shown = []
    for color, left in (((120, 130, 125), 40), ((200, 60, 30), None), ((60, 160, 60), 680)):
        for image in images:
            frame = np.full((720, 1280, 3), color, np.uint8)
            if left is not None:
                frame[380:695, left : left + 560] = image
            shown.append(frame)
    return [Frame(image, number / 25) for number, image in enumerate(shown)]


@pytest.mark.parametrize("preset", [WLASL, PERSON], ids=lambda preset: preset.name)
def test_each_shot_has_its_own_box(film: list[Frame], preset) -> None:  # type: ignore[no-untyped-def]
    framer = FilmFramer(preset)
    crops = list(framer.crop_shots(film))
    assert [crop.shot for crop in crops] == [0] * SHOT + [1] * SHOT + [2] * SHOT
    assert [crop.time_s for crop in crops] == [frame.time_s for frame in film]
    assert [shot.start_s for shot in framer.boxes] == [0.0, SHOT / 25, 2 * SHOT / 25]
    left, none, right = (shot.box for shot in framer.boxes)
    assert left is not None and left.x1 < 0.55 and left.source == "face"
    assert none is None
    assert right is not None and right.x0 > 0.45
    for index, box in ((3, left), (25, none), (50, right)):
        whole = crop_frame(film[index].image, preset)
        assert np.array_equal(crops[index].image, whole) == (box is None)
    warnings = framer.list_warnings()
    if preset is PERSON:
        assert warnings == [
            "no signer was found in 1 of 3 shots, so whole frames were used: give the signer's box with --signer "
            "x0,y0,x1,y1"
        ]
    else:
        assert warnings == []


def test_film_of_whole_frames_is_cropped_without_search(film: list[Frame]) -> None:
    framer = FilmFramer(WLASL, finds=False)
    crops = list(framer.crop_shots(film))
    assert all(
        np.array_equal(crop.image, crop_frame(frame.image, WLASL)) for crop, frame in zip(crops, film, strict=True)
    )
    assert [shot.box for shot in framer.boxes] == [None] * 3


def test_given_box_applies_to_all_shots(film: list[Frame]) -> None:
    box = SignerBox(0.1, 0.5, 0.4, 0.95)
    framer = FilmFramer(PERSON, box)
    crops = list(framer.crop_shots(film))
    assert {shot.box for shot in framer.boxes} == {box}
    assert np.array_equal(crops[50].image, crop_frame(film[50].image, PERSON, box))


def test_film_of_one_frame_or_none_is_cropped(film: list[Frame]) -> None:
    assert list(FilmFramer(PERSON).crop_shots([])) == []
    assert len(list(FilmFramer(PERSON).crop_shots(film[:1]))) == 1


@pytest.mark.parametrize(
    ("box", "size", "region"),
    [
        ((0.6, 0.5, 0.8, 0.9), (720, 1280), (704, 360, 1088, 648)),  # widened to 4:3
        ((0.2, 0.5, 0.8, 0.6), (720, 1280), None),  # widened to 4:3, it would be most of the frame's height
        ((0.3, 0.1, 0.7, 0.9), (720, 1280), None),
        ((0.1, 0.2, 0.9, 0.6), (1280, 720), (19, 256, 701, 768)),  # portrait frames are always cut
    ],
)
def test_small_box_is_cut_out_for_models_of_whole_frames(
    box: tuple[float, float, float, float], size: tuple[int, int], region: tuple[int, int, int, int] | None
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    framing = choose_by_box(SignerBox(*box), WLASL, image)
    assert framing.region == region
    assert (framing == WHOLE) == (region is None)
    assert choose_by_box(SignerBox(*box, source="dataset"), WLASL, image) == WHOLE


def test_frame_of_another_size_stays_whole() -> None:
    frames = [Frame(np.full((*size, 3), 9, np.uint8), 0.0) for size in ((720, 1280), (240, 320))]
    framed = frame_signer(frames, WLASL, SignerBox(0.6, 0.5, 0.8, 0.9))
    sizes: list[Image] = [frame.image for frame in framed.frames]
    assert [image.shape[:2] for image in sizes] == [(288, 384), (240, 320)]
