"""Windows start again at every cut of a film."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pytest

from asl_triton.postprocessing.stitching import with_window
from asl_triton.presets import PRESETS, Preset
from asl_triton.video.preprocessing import Crop
from asl_triton.video.shots import ShotDetector, number_shots
from asl_triton.video.windows import cut_windows_by_shot

WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]


def make_scene(num_frames: int, seed: int, *, still: bool = True) -> list[np.ndarray]:
    """Build a blotchy background with a fast white figure that covers a fifth of the picture.

    Without `still`, the camera moves too.
    """
    random = np.random.default_rng(seed)
    room = cv2.resize(random.integers(0, 256, (8, 8, 3)).astype(np.uint8), (400, 224), interpolation=cv2.INTER_CUBIC)
    frames = []
    for n in range(num_frames):
        left = 40 if still else 40 + 2 * n % 100
        picture = room[:, left : left + 224].copy()
        across = 20 + (40 * n) % 100
        picture[60:160, across : across + 100] = 255
        frames.append(picture)
    return frames


def make_crops(*scenes: Sequence[np.ndarray]) -> list[Crop]:
    pictures = [picture for frames in scenes for picture in frames]
    return [Crop(picture, n / 25) for n, picture in enumerate(pictures)]


def detect_shots(crops: Sequence[Crop]) -> list[int]:
    return list(map(ShotDetector(), crops))


@pytest.mark.parametrize("still", [True, False], ids=["still camera", "moving camera"])
def test_cuts_are_distinguished_from_movement(still: bool) -> None:
    crops = make_crops(make_scene(30, 1, still=still), make_scene(20, 2, still=still), make_scene(40, 3, still=still))
    assert detect_shots(crops) == [0] * 30 + [1] * 20 + [2] * 40


def test_flash_is_not_a_separate_shot() -> None:
    frames = make_scene(60, 1)
    for n in (30, 31):
        frames[n] = np.full_like(frames[n], 255)
    assert max(detect_shots(make_crops(frames))) <= 1


def test_slow_fade_is_at_most_one_cut() -> None:
    one, other = make_scene(1, 1)[0].astype(float), make_scene(1, 2)[0].astype(float)
    fade = [(one + (other - one) * n / 50).astype(np.uint8) for n in range(51)]
    assert set(detect_shots(make_crops(make_scene(20, 1), fade, make_scene(20, 2)))) <= {0, 1}


@pytest.mark.parametrize(("preset", "lengths", "windows"), [
    (WLASL, (100, 20), [(0, 64, 0), (32, 64, 0), (36, 64, 0), (100, 20, 1)]),
    (WLASL, (30,), [(0, 30, 0)]),
    (WLASL, (64, 12, 64), [(0, 64, 0), (64, 12, 1), (76, 64, 2)]),
    (BSL1K, (70, 20), [(0, 64, 0), (6, 64, 0), (70, 64, 1)]),
], ids=str)  # fmt: skip
def test_windows_stay_within_their_shot(
    preset: Preset, lengths: Sequence[int], windows: list[tuple[int, int, int]]
) -> None:
    crops = make_crops(*(make_scene(length, seed) for seed, length in enumerate(lengths)))
    found = list(cut_windows_by_shot(number_shots(crops), with_window(preset), 25.0))
    assert [(span.start, span.num_frames, span.shot) for _, span in found] == windows
    for window, span in found:
        shown = len(span.edges_s) - 1
        assert window.start == span.start and len(window.frames) == span.num_frames
        assert np.array_equal(window.frames[0], crops[span.start].image)
        assert np.array_equal(window.frames[-1], crops[span.start + shown - 1].image)
        assert span.edges_s == pytest.approx((span.start + np.arange(shown + 1)) / 25)


def test_film_is_streamed() -> None:
    num_read = []

    def count_crops() -> Iterator[Crop]:
        for n, crop in enumerate(make_crops(make_scene(300, 1), make_scene(300, 2))):
            num_read.append(n)
            yield crop

    for _, span in cut_windows_by_shot(number_shots(count_crops()), with_window(WLASL), 25.0):
        assert num_read[-1] <= span.start + span.num_frames + 1
