"""Turning frames into network input: resampling, resizing, cropping and windows, compared with the reference."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from asl_triton.errors import VideoError
from asl_triton.presets import PRESETS, Preset
from asl_triton.results import SignerBox
from asl_triton.video.preprocessing import Crop, choose_frame_step, crop_frame, crop_frames, normalize, resample
from asl_triton.video.reader import Frame, open_video
from asl_triton.video.windows import Window, choose_centered, cut_timed_windows, cut_windows

WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]
PERSON, CITIZEN = PRESETS["bsl1k-person"], PRESETS["asl-citizen"]


def make_picture(height: int, width: int) -> np.ndarray:
    """Build a BGR frame of random pixels."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def crop_center(image: np.ndarray) -> np.ndarray:
    """Return the center 224 x 224 pixels in RGB."""
    top, left = round((image.shape[0] - 224) / 2), round((image.shape[1] - 224) / 2)
    return image[top : top + 224, left : left + 224, ::-1]


def enlarge(image: np.ndarray) -> np.ndarray:
    """Scale the shorter side to 226 pixels, with the formula of WLASL's loaders."""
    scale = 1 + (226 - min(image.shape[:2])) / min(image.shape[:2])
    return cv2.resize(image, dsize=(0, 0), fx=scale, fy=scale)


def make_square(image: np.ndarray, size: int = 256) -> np.ndarray:
    return cv2.resize(image, (size, size))


def keep(image: np.ndarray) -> np.ndarray:
    return image


@pytest.mark.parametrize(("name", "size", "steps"), [
    ("wlasl", (256, 256), [keep]),
    ("wlasl", (226, 226), [keep]),
    ("wlasl", (241, 255), [keep]),
    ("wlasl", (200, 250), [enlarge]),
    ("wlasl", (100, 256), [enlarge]),
    ("wlasl", (16, 16), [enlarge]),
    ("wlasl", (1, 1), [enlarge]),
    ("wlasl", (240, 320), [make_square]),
    ("wlasl", (257, 226), [make_square]),
    ("wlasl", (200, 320), [enlarge, make_square]),  # the ORIGINAL size decides on the square
    ("wlasl", (720, 1280), [make_square]),
    ("wlasl-test", (240, 320), [keep]),
    ("wlasl-test", (200, 320), [enlarge]),
    ("bsl1k", (256, 256), [make_square]),
    ("bsl1k", (100, 50), [make_square]),
    ("bsl1k", (720, 1280), [make_square]),
    ("asl-inference", (720, 1280), [lambda image: make_square(image, 224)]),
    ("asl-inference", (224, 224), [keep]),
])  # fmt: skip
def test_frame_is_resized_and_cropped_by_the_preset(name: str, size: tuple[int, int], steps: list) -> None:
    expected = image = make_picture(*size)
    for step in steps:
        expected = step(expected)
    cropped = crop_frame(image, PRESETS[name])
    assert cropped.shape == (224, 224, 3) and cropped.flags.c_contiguous
    assert np.array_equal(cropped, crop_center(expected))


def test_frame_too_narrow_to_scale_up_is_rejected() -> None:
    with pytest.raises(VideoError, match="2 x 10000 pixels are too narrow to scale"):
        crop_frame(np.zeros((10000, 2, 3), np.uint8), WLASL)


def test_signers_box_is_sampled_from_edge_to_edge() -> None:
    """Computes the definition: 224 points over the middle 7/8 of the box, bilinear, in half-pixel coordinates."""
    image, box = make_picture(300, 400), SignerBox(0.2, 0.1, 0.7, 0.9)
    square = cv2.resize(image, (256, 256)).astype(float)
    xs = np.linspace(0.45 - 0.25 * 7 / 8, 0.45 + 0.25 * 7 / 8, 224) * 256 - 0.5
    ys = np.linspace(0.5 - 0.4 * 7 / 8, 0.5 + 0.4 * 7 / 8, 224) * 256 - 0.5
    crop = crop_frame(image, PERSON, box)
    assert crop.shape == (224, 224, 3) and crop.flags.c_contiguous
    for row, column in ((0, 0), (0, 223), (111, 57), (223, 223)):
        x, y = xs[column], ys[row]
        left, top = int(x), int(y)
        near = square[top : top + 2, left : left + 2]
        weights = np.outer([1 - (y - top), y - top], [1 - (x - left), x - left])
        assert np.abs(crop[row, column, ::-1] - (near * weights[..., None]).sum((0, 1))).max() <= 0.51


def test_box_in_another_part_of_the_frame_gives_another_crop() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 100:] = 255
    left, right = SignerBox(0, 0, 0.5, 1), SignerBox(0.5, 0, 1, 1)
    assert crop_frame(image, PERSON, left).max() == 0 and crop_frame(image, PERSON, right).min() == 255
    assert np.array_equal(crop_frame(image, BSL1K, left), crop_frame(image, BSL1K))  # takes whole frames


def test_whole_frame_is_used_without_a_box() -> None:
    image = make_picture(240, 320)
    assert np.array_equal(crop_frame(image, PERSON), crop_frame(image, PERSON, SignerBox(0, 0, 1, 1)))


def make_frames(times_s: list[float]) -> list[Frame]:
    """Build frames whose pixels hold their index."""
    return [Frame(np.full((1, 1, 3), n, np.uint8), time_s) for n, time_s in enumerate(times_s)]


@pytest.mark.parametrize(("times_s", "shown"), [
    ([0, 0.04, 0.08], [0, 1, 2]),  # 25 per second are kept
    ([0, 0.08, 0.16], [0, 0, 1, 1, 2]),  # 12.5: each but the last is repeated
    ([k / 50 for k in range(6)], [0, 2, 4, 5]),  # 50: the last of two in a slot is kept; halves round up
    ([k / 30 for k in range(7)], [0, 1, 2, 4, 5, 6]),
    ([0, 0.039, 0.081], [0, 1, 2]),  # jitter
    ([0, 0.2], [0, 0, 0, 0, 0, 1]),  # the frame before a gap fills it
    ([0.0], [0]),
    ([], []),
], ids=str)  # fmt: skip
def test_frames_are_resampled_to_the_requested_rate(times_s: list[float], shown: list[int]) -> None:
    frames = list(resample(make_frames(times_s), 25.0, max_frames=1000))
    slots = [int(np.floor(t * 25 + 0.5)) for t in times_s]
    by_definition = [max(n for n, slot in enumerate(slots) if slot <= k) for k in range(max(slots, default=-1) + 1)]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == by_definition == shown
    assert [frame.time_s for frame in frames] == pytest.approx([k / 25 for k in range(len(shown))])


def test_timestamp_beyond_the_limit_is_rejected() -> None:
    with pytest.raises(VideoError, match=r"timestamp 1000000 s.*repair its timestamps"):
        list(resample(make_frames([0, 1e6]), 25.0, max_frames=1000))


def make_crops(count: int) -> Iterator[np.ndarray]:
    """Build crops (1, 1, 2) that hold their index."""
    return (np.full((1, 1, 2), divmod(n, 256), np.uint8) for n in range(count))


def list_indices(window: Window) -> list[int]:
    """Return the indices of a window's crops."""
    return list(window.frames.reshape(-1, 2) @ [256, 1])


@pytest.mark.parametrize("count", [9, 10, 64, 299, 300])
def test_whole_clip_is_one_window(count: int) -> None:
    (window,) = cut_windows(make_crops(count), WLASL)
    assert (window.start, list_indices(window)) == (0, list(range(count)))


@pytest.mark.parametrize(("preset", "count", "length"), [
    (WLASL, 1, 9), (WLASL, 8, 9), (BSL1K, 1, 64), (BSL1K, 63, 64), (BSL1K, 64, 64),
], ids=lambda value: getattr(value, "name", value))  # fmt: skip
def test_short_clip_repeats_last_frame(preset: Preset, count: int, length: int) -> None:
    (window,) = cut_windows(make_crops(count), preset)
    assert list_indices(window) == [min(n, count - 1) for n in range(length)]


@pytest.mark.parametrize(("preset", "count", "starts"), [
    (BSL1K, 65, [0, 1]),
    (BSL1K, 96, [0, 32]),
    (BSL1K, 97, [0, 32, 33]),
    (BSL1K, 128, [0, 32, 64]),
    (WLASL, 301, [*range(0, 225, 32), 237]),
    (WLASL, 320, [*range(0, 257, 32)]),
], ids=lambda value: getattr(value, "name", value))  # fmt: skip
def test_last_window_of_a_longer_clip_ends_with_the_clip(preset: Preset, count: int, starts: list[int]) -> None:
    found = list(cut_windows(make_crops(count), preset))
    assert [window.start for window in found] == starts
    for window in found:
        assert list_indices(window) == list(range(window.start, window.start + 64))


@pytest.mark.parametrize(("preset", "count", "spans"), [
    (WLASL, 5, [(0, 9, 5)]), (WLASL, 300, [(0, 300, 300)]),
    (WLASL, 310, [(32 * n, 64, 64) for n in range(8)] + [(246, 64, 64)]),
    (BSL1K, 20, [(0, 64, 20)]), (BSL1K, 100, [(0, 64, 64), (32, 64, 64), (36, 64, 64)]),
], ids=str)  # fmt: skip
def test_windows_have_the_times_of_their_crops(preset: Preset, count: int, spans: list[tuple[int, int, int]]) -> None:
    times_s = np.cumsum([0] + [0.04 + 0.01 * (n % 3) for n in range(count - 1)])
    images = [np.full((1, 1, 3), n % 256, np.uint8) for n in range(count)]
    found = list(cut_timed_windows((Crop(*pair) for pair in zip(images, times_s, strict=True)), preset, 25.0))
    assert [(span.start, span.num_frames, len(span.edges_s) - 1) for _, span in found] == spans
    for window, span in found:
        shown = len(span.edges_s) - 1
        assert window.start == span.start and window.frames[0, 0, 0, 0] == span.start % 256
        assert span.edges_s[:shown] == pytest.approx(times_s[span.start : span.start + shown])
        assert 0.03 < span.edges_s[-1] - span.edges_s[-2] < 0.07


# From ASL Citizen's loader: step 2 from 96 frames, 3 from 160; the start is (count - 64 * step) // 2, 0 to 160.
CENTERED = {1: (0, 1), 30: (0, 1), 64: (0, 1), 68: (2, 1), 95: (15, 1), 96: (0, 2), 129: (0, 2), 136: (4, 2),
            159: (15, 2), 160: (0, 3), 193: (0, 3), 204: (6, 3), 512: (160, 3), 600: (160, 3)}  # fmt: skip


@pytest.mark.parametrize(("count", "start", "step"), [(n, *rest) for n, rest in CENTERED.items()])
def test_centered_frames_are_spread_out_in_longer_clips(count: int, start: int, step: int) -> None:
    taken = list(range(count))[start : start + 64 * step : step]
    assert choose_centered(range(count), CITIZEN) == (start, taken)
    (window,) = cut_windows(make_crops(count), CITIZEN)
    assert (window.start, window.is_only) == (start, True)
    assert list_indices(window) == (taken + [taken[-1]] * 64)[:64]


def test_centered_frames_have_their_own_times() -> None:
    crops = (Crop(np.full((1, 1, 3), n, np.uint8), n / 30) for n in range(136))
    ((window, timing),) = cut_timed_windows(crops, CITIZEN, 30.0)
    assert window.frames[:, 0, 0, 0].tolist() == list(range(4, 132, 2))
    assert timing.edges_s == pytest.approx([n / 30 for n in range(4, 133, 2)])


def test_memory_of_centered_frames_is_bounded() -> None:
    alive, peak = 0, 0

    class Counted:
        def __init__(self) -> None:
            nonlocal alive, peak
            alive, peak = alive + 1, max(peak, alive + 1)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    choose_centered((Counted() for _ in range(2000)), CITIZEN)
    assert peak <= CITIZEN.max_centered_frames + 2


@pytest.mark.parametrize("count", [3, 70, 300, 310])
@pytest.mark.parametrize("name", ["wlasl", "bsl1k", "bsl1k-person"])
def test_crops_written_to_window_memory_are_the_same(name: str, count: int) -> None:
    preset = PRESETS[name]
    frames = [Frame(make_picture(256, 250 + number % 13), number / 25) for number in range(count)]
    memory = np.full((preset.longest_window, 224, 224, 3), 99, np.uint8)
    written = (crop.image for crop in crop_frames(frames, preset, 1000, memory=memory))
    apart = [crop.image for crop in crop_frames(frames, preset, 1000)]
    found = [(window.start, window.frames.copy()) for window in cut_windows(written, preset, memory)]
    expected = [(window.start, window.frames) for window in cut_windows(iter(apart), preset)]
    assert [start for start, _ in found] == [start for start, _ in expected]
    assert all(np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(found, expected, strict=True))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_no_frames_give_no_windows(preset: Preset) -> None:
    assert list(cut_windows(iter([]), preset)) == []
    assert list(cut_timed_windows(iter([]), preset, 25.0)) == []


def test_windows_are_cut_while_frames_arrive() -> None:
    images = make_crops(1000)
    cutting = cut_windows(images, BSL1K)
    assert [next(cutting).start, next(cutting).start] == [0, 32]
    assert next(images).reshape(-1).tolist() == [0, 64 + 32]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_fp32_input_has_the_presets_color_order_and_range(preset: Preset) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 224, 224, 3), np.uint8)
    frames[0, 0, 0], frames[0, 0, 1] = (0, 0, 255), (255, 255, 0)  # RGB
    values = normalize(frames, preset)
    low, high = preset.value_range
    assert values.shape == (3, 9, 224, 224) and values.dtype == np.float32
    first = [high, low, low] if preset.colour == "BGR" else [low, low, high]
    assert values[:, 0, 0, 0].tolist() == first
    expected = frames[..., ::-1] if preset.colour == "BGR" else frames
    assert np.allclose(values, (expected / 255 * (high - low) + low).transpose(3, 0, 1, 2), atol=1e-6)


@pytest.mark.parametrize("name", ["wlasl", "wlasl-test", "asl-inference"])
@pytest.mark.parametrize("clip", ["07068", "07069"])
def test_crops_match_the_reference(
    shared_folder: Path, expected: Mapping[str, np.ndarray], clip: str, name: str
) -> None:
    with open_video(shared_folder / "wlasl" / "videos" / f"{clip}.mp4") as video:
        images = [c.image for c in crop_frames(video, PRESETS[name], 10_000)]
    frames = expected[f"{clip}/{name}/frames"]
    assert len(images) == expected.get(f"{clip}/{name}/num_frames", len(images))
    ours = np.stack([images[0], images[len(images) // 2], images[-1]])
    assert np.abs(ours.astype(int) - frames).max() <= 2


@pytest.mark.parametrize(("frame_rate", "step"), [
    (12, 1), (24, 1), (29.97, 1), (30, 1), (35, 1), (36, 2), (50, 2), (59.94, 2), (60, 2), (90, 3), (120, 4), (240, 7),
])  # fmt: skip
def test_fast_videos_are_thinned_to_the_trained_frame_rate(frame_rate: float, step: int) -> None:
    assert choose_frame_step(WLASL, frame_rate) == step
    assert frame_rate / choose_frame_step(WLASL, frame_rate) <= 35
    assert choose_frame_step(PRESETS["bsl1k"], frame_rate) == 1  # it resamples to its own rate
    assert choose_frame_step(PRESETS["asl-citizen"], frame_rate) == 1  # it counts frames instead
