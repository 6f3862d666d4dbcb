"""Where a film cuts, windows begin anew."""

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


def scene(num_frames: int, seed: int, *, still: bool = True) -> list[np.ndarray]:
    """A room of blotches in which a white figure, a fifth of the picture, moves quickly; without `still` the camera
    moves too."""
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


def crops_of(*scenes: Sequence[np.ndarray]) -> list[Crop]:
    pictures = [picture for frames in scenes for picture in frames]
    return [Crop(picture, n / 25) for n, picture in enumerate(pictures)]


def numbers(crops: Sequence[Crop]) -> list[int]:
    return list(map(ShotDetector(), crops))


@pytest.mark.parametrize("still", [True, False], ids=["still camera", "moving camera"])
def test_cut_is_told_from_movement(still: bool) -> None:
    crops = crops_of(scene(30, 1, still=still), scene(20, 2, still=still), scene(40, 3, still=still))
    assert numbers(crops) == [0] * 30 + [1] * 20 + [2] * 40


def test_flash_is_no_shot_of_its_own() -> None:
    frames = scene(60, 1)
    for n in (30, 31):
        frames[n] = np.full_like(frames[n], 255)
    assert max(numbers(crops_of(frames))) <= 1


def test_slow_fade_is_no_cut() -> None:
    one, other = scene(1, 1)[0].astype(float), scene(1, 2)[0].astype(float)
    fade = [(one + (other - one) * n / 50).astype(np.uint8) for n in range(51)]
    assert set(numbers(crops_of(scene(20, 1), fade, scene(20, 2)))) <= {0, 1}


@pytest.mark.parametrize(("preset", "lengths", "windows"), [
    (WLASL, (100, 20), [(0, 64, 0), (32, 64, 0), (36, 64, 0), (100, 20, 1)]),
    (WLASL, (30,), [(0, 30, 0)]),
    (WLASL, (64, 12, 64), [(0, 64, 0), (64, 12, 1), (76, 64, 2)]),
    (BSL1K, (70, 20), [(0, 64, 0), (6, 64, 0), (70, 64, 1)]),
], ids=str)  # fmt: skip
def test_no_window_goes_beyond_its_shot(
    preset: Preset, lengths: Sequence[int], windows: list[tuple[int, int, int]]
) -> None:
    crops = crops_of(*(scene(length, seed) for seed, length in enumerate(lengths)))
    found = list(cut_windows_by_shot(number_shots(crops), with_window(preset), 25.0))
    assert [(span.start, span.num_frames, span.shot) for _, span in found] == windows
    for window, span in found:
        shown = len(span.edges_s) - 1
        assert window.start == span.start and len(window.frames) == span.num_frames
        assert np.array_equal(window.frames[0], crops[span.start].image)
        assert np.array_equal(window.frames[-1], crops[span.start + shown - 1].image)
        assert span.edges_s == pytest.approx((span.start + np.arange(shown + 1)) / 25)


def test_film_is_never_held() -> None:
    held = []

    def counted() -> Iterator[Crop]:
        for n, crop in enumerate(crops_of(scene(300, 1), scene(300, 2))):
            held.append(n)
            yield crop

    for _, span in cut_windows_by_shot(number_shots(counted()), with_window(WLASL), 25.0):
        assert held[-1] <= span.start + span.num_frames + 1
