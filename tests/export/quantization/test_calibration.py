"""Which clips quantize a network, which ones measure the cost, and how it is measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from asl_triton.errors import VideoError
from asl_triton.evaluation.dataset import LabeledClip
from asl_triton.presets import PRESETS
from asl_triton_export.quantization.calibration import (
    MAX_CLIPS,
    MAX_FRAMES,
    MAX_HELD_OUT,
    Calibration,
    read_calibration,
    sample_evenly,
)
from asl_triton_export.quantization.report import measure_cost
from asl_triton_export.triton_config import ServedNetwork
from tests.live.conftest import write_clip

PRESET = PRESETS["wlasl"]
LABELS = ("book", "drink", "hello", "help", "home", "mother", "yes")


def write_clips(folder: Path, names: Sequence[str], num_frames: int = 10) -> Path:
    for seed, name in enumerate(names):
        write_clip(folder / name, num_frames=num_frames, size=(64, 64), seed=seed)
    return folder


def test_half_of_the_clips_quantize_and_the_rest_measure(tmp_path: Path) -> None:
    calibration = read_calibration(write_clips(tmp_path, ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"]), PRESET, LABELS)
    assert [clip.shape for clip in calibration.clips] == [(10, 224, 224, 3)] * 3
    assert [clip.name for clip in calibration.held_out] == ["c.mp4", "e.mp4"]
    assert calibration.apart


def test_clips_in_gloss_folders_are_labeled(tmp_path: Path) -> None:
    names = ["book/a.mp4", "book/b.mp4", "Yes/a.mp4", "yes/b.mp4", "other/a.mp4"]
    held_out = read_calibration(write_clips(tmp_path, names), PRESET, LABELS).held_out
    assert all(isinstance(clip, LabeledClip) for clip in held_out)
    assert {clip.gloss for clip in held_out} <= {"book", "yes"}


def test_single_clip_does_both(tmp_path: Path) -> None:
    calibration = read_calibration(write_clips(tmp_path, ["only.mp4"]), PRESET, LABELS)
    assert (len(calibration.clips), len(calibration.held_out), calibration.apart) == (1, 1, False)


def test_long_clip_is_cut_for_quantization(tmp_path: Path) -> None:
    calibration = read_calibration(write_clips(tmp_path, ["long.mp4"], num_frames=MAX_FRAMES + 20), PRESET, LABELS)
    assert len(calibration.clips[0]) == MAX_FRAMES


def test_damaged_clips_are_skipped_unless_all_are_damaged(tmp_path: Path) -> None:
    write_clips(tmp_path, ["a.mp4", "c.mp4"])
    (tmp_path / "b.mp4").write_bytes(b"no video")
    assert len(read_calibration(tmp_path, PRESET, LABELS).clips) == 1
    for name in ("a.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"none of 2 clips in .* can be read"):
        read_calibration(tmp_path, PRESET, LABELS)


def test_folder_without_clips_is_reported(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no video"):
        read_calibration(tmp_path, PRESET, LABELS)


@pytest.mark.parametrize(("count", "most"), [(1, 32), (31, 32), (64, 32), (1000, MAX_CLIPS), (65, MAX_HELD_OUT)])
def test_samples_are_spread_evenly(count: int, most: int) -> None:
    chosen = sample_evenly(range(count), most)
    assert len(chosen) == min(count, most) == len(set(chosen))
    steps = np.diff([*chosen, count])
    assert steps.max() - steps.min() <= 1


def test_cost_is_measured_on_the_held_out_clips(tmp_path: Path) -> None:
    names = ["book/a.mp4", "book/b.mp4", "yes/a.mp4", "yes/b.mp4"]
    calibration = read_calibration(write_clips(tmp_path, names), PRESET, LABELS)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    held_out = (*calibration.held_out, LabeledClip(broken, "broken.mp4", "book", 0))
    calibration = Calibration(tmp_path, calibration.clips, held_out, apart=True)
    network = ServedNetwork("small", 7, 64, PRESET, "int8", "uint8", "0" * 64, served_as="openvino")
    exact = np.array([9, 5, 4, 3, 2, 1, 0], np.float32)  # "book" first
    shapes: list[tuple[int, ...]] = []

    def answer_exactly(frames: np.ndarray) -> np.ndarray:
        shapes.append(frames.shape)
        return exact

    # Wrong for the first clip: "yes" comes first and pushes "home" out of the top five.
    answers = iter([exact + np.array([0, 0, 0, 0, 0, 0, 12], np.float32), exact + 0.5])
    cost = measure_cost(answer_exactly, lambda frames: next(answers), network, calibration, LABELS)
    assert shapes == [(1, 10, 224, 224, 3)] * 2
    assert (cost.quantized_with, cost.frames, cost.apart, cost.clips) == (2, 20, True, 2)
    assert (cost.same_best, cost.top5_in_common, cost.max_difference, cost.spread) == (1, 4.5, 12.0, 9.0)
    assert cost.accuracies is not None
    # The held-out clips show "book" and "yes", in this order.
    assert [accuracy.top1 for accuracy in cost.accuracies] == [0.5, 0.0]
    assert [accuracy.top5 for accuracy in cost.accuracies] == [0.5, 0.5]
