"""Stitching the step logits of windows and cutting them into segments."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asl_triton.errors import AslTritonError
from asl_triton.postprocessing.ranking import compute_confidences
from asl_triton.postprocessing.segmentation import Segmentation, Segmenter, select_curves
from asl_triton.postprocessing.stitching import Stitcher, with_window
from asl_triton.presets import PRESETS, Preset
from asl_triton.results import Segment, Step
from asl_triton.video.windows import WindowTiming

WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]
LABELS = ("book", "drink", "hello")


def make_timing(
    start: int, num_frames: int, *, shown: int | None = None, rate: float = 25.0, shot: int = 0
) -> WindowTiming:
    """Return the timing of a window of a video of constant frame rate, of which `shown` crops are not padding."""
    crops = num_frames if shown is None else shown
    return WindowTiming(start, num_frames, (start + np.arange(crops + 1)) / rate, shot)


def make_logits(*values: float) -> np.ndarray:
    """Build step logits (S, 3): `values` for the first gloss, and very low ones for the others."""
    logits = np.full((len(values), 3), -20.0, np.float32)
    logits[:, 0] = values
    return logits


def stitch(windows: Iterable[tuple[WindowTiming, np.ndarray]], preset: Preset = WLASL) -> list[Step]:
    stitcher = Stitcher(preset)
    return [step for where, logits in windows for step in stitcher.add(where, logits)] + stitcher.finish()


def recover_logits(steps: Sequence[Step]) -> list[float]:
    """Return the first gloss's logit at each step, recovered from its sigmoid."""
    return [math.log(step.confidences[0] / (1 - step.confidences[0])) for step in steps]


def test_step_spans_the_middle_eight_of_its_sixteen_frames() -> None:
    steps = stitch([(make_timing(0, 40), make_logits(0, 1, 2, 3))])
    assert [(step.start_s, step.end_s) for step in steps] == [
        pytest.approx((start / 25, (start + 8) / 25)) for start in (4, 12, 20, 28)
    ]
    assert recover_logits(steps) == pytest.approx([0, 1, 2, 3], abs=1e-5)
    assert steps[0].middle_s == pytest.approx(8 / 25)


def test_overlapping_windows_are_averaged() -> None:
    steps = stitch([(make_timing(0, 40), make_logits(0, 1, 2, 3)), (make_timing(16, 40), make_logits(4, 5, 6, 7))])
    assert recover_logits(steps) == pytest.approx([0, 1, 3, 4, 6, 7], abs=1e-5)
    assert [step.start_s for step in steps] == pytest.approx([(4 + 8 * n) / 25 for n in range(6)])


def test_stride_that_is_not_a_multiple_of_eight_averages_times_too() -> None:
    steps = stitch([(make_timing(0, 40), make_logits(0, 1, 2, 3)), (make_timing(18, 40), make_logits(4, 5, 6, 7))])
    assert recover_logits(steps) == pytest.approx([0, 1, 3, 4, 6, 7], abs=1e-5)
    assert [step.start_s * 25 for step in steps] == pytest.approx([4, 12, 21, 29, 38, 46])


def test_adjacent_windows_have_no_step_between_them() -> None:
    steps = stitch([(make_timing(0, 24), make_logits(0, 1)), (make_timing(24, 24), make_logits(2, 3))])
    assert [step.start_s * 25 for step in steps] == pytest.approx([4, 12, 28, 36])


def test_last_window_flush_with_the_end_fills_a_gap() -> None:
    steps = stitch(
        [
            (make_timing(0, 24), make_logits(0, 1)),
            (make_timing(24, 24), make_logits(2, 3)),
            (make_timing(26, 24), make_logits(4, 5)),
        ]
    )
    assert [step.start_s for step in steps] == sorted(step.start_s for step in steps)
    assert len(steps) == 4


def test_steps_are_emitted_once_no_window_can_change_them() -> None:
    stitcher = Stitcher(WLASL)
    assert stitcher.add(make_timing(0, 40), make_logits(0, 1, 2, 3)) == []
    assert len(stitcher.add(make_timing(16, 40), make_logits(4, 5, 6, 7))) == 2
    assert len(stitcher.add(make_timing(32, 40), make_logits(4, 5, 6, 7))) == 2
    assert len(stitcher.finish()) == 4 and stitcher.finish() == []


@pytest.mark.parametrize(("num_frames", "shown", "spans"), [
    (9, 9, [(0, 9)]), (9, 3, [(0, 3)]), (16, 16, [(0, 16)]),  # a single step
    (64, 20, [(4, 12), (12, 20)]), (64, 18, [(4, 12), (12, 18)]),  # repeated last crops take no time
], ids=str)  # fmt: skip
def test_short_clip_has_no_steps_beyond_its_end(num_frames: int, shown: int, spans: list[tuple[int, int]]) -> None:
    num_steps = max(math.ceil(num_frames / 8) - 1, 1)
    steps = stitch([(make_timing(0, num_frames, shown=shown), make_logits(*range(num_steps)))])
    assert [(round(step.start_s * 25, 6), round(step.end_s * 25, 6)) for step in steps] == spans


def test_steps_have_frame_times_when_the_rate_varies() -> None:
    edges_s = np.concatenate([np.arange(20) / 25, 0.8 + np.arange(21) / 5])  # 20 frames of 40 ms, then of 200 ms
    (first, second, third, fourth) = stitch([(WindowTiming(0, 40, edges_s), make_logits(0, 1, 2, 3))])
    assert (first.start_s, first.end_s) == pytest.approx((4 / 25, 12 / 25))
    assert (second.start_s, second.end_s) == pytest.approx((12 / 25, 0.8))
    assert (third.start_s, third.end_s) == pytest.approx((0.8, 0.8 + 8 / 5))
    assert (fourth.start_s, fourth.end_s) == pytest.approx((0.8 + 8 / 5, 0.8 + 16 / 5))


def test_shots_do_not_share_a_step() -> None:
    steps = stitch([(make_timing(0, 9), make_logits(1)), (make_timing(9, 9, shown=2, shot=1), make_logits(3))])
    assert recover_logits(steps) == pytest.approx([1, 3], abs=1e-5)
    assert steps[1].end_s == pytest.approx(11 / 25)


def test_steps_use_the_score_of_the_preset() -> None:
    logits = np.array([[0, 1, 2]], np.float32)
    (step,) = stitch([(make_timing(0, 64), np.repeat(logits, 7, axis=0))], BSL1K)[:1]
    assert step.confidences == pytest.approx(
        compute_confidences(logits[0], BSL1K)
    ) and step.confidences.sum() == pytest.approx(1)
    assert step.confidences.dtype == np.float32


@pytest.mark.parametrize(("window", "stride", "cut"), [
    (None, None, (64, 32)), (48, None, (48, 24)), (48, 8, (48, 8)), (9, None, (9, 4)), (300, 300, (300, 300)),
    (None, 64, (64, 64)), (9, 1, (9, 1)),
], ids=str)  # fmt: skip
def test_windows_default_to_the_preset(window: int | None, stride: int | None, cut: tuple[int, int]) -> None:
    for preset in (WLASL, BSL1K):
        changed = with_window(preset, window, stride)
        assert (changed.window_frames, changed.stride_frames, changed.max_frames) == (*cut, cut[0])
        assert (changed.frames, changed.score, changed.frame_rate) == (preset.frames, preset.score, preset.frame_rate)


@pytest.mark.parametrize(("window", "stride", "says"), [
    (8, None, "--window 8 is out of range: preset 'wlasl' accepts 9 to 300"),
    (301, None, "--window 301 is out of range"), (0, 1, "--window 0 is out of range"),
    (64, 65, "--stride 65 is out of range: windows of 64 frames need 1 to 64"), (64, 0, "--stride 0 is out of range"),
], ids=str)  # fmt: skip
def test_invalid_windows_are_rejected(window: int, stride: int | None, says: str) -> None:
    with pytest.raises(AslTritonError, match=says):
        with_window(WLASL, window, stride)


def make_steps(*curves: Sequence[float], length_s: float = 1.0) -> list[Step]:
    """Build one-second steps from 0.5 s on. Each curve lists the confidences of one gloss."""
    columns = [np.array(values, np.float32) for values in zip(*curves, strict=True)]
    return [Step((n + 0.5) * length_s, (n + 1.5) * length_s, values) for n, values in enumerate(columns)]


def find_segments(
    steps: Iterable[Step], rules: Segmentation | None = None, class_ids: Sequence[int] | None = None
) -> list[Segment]:
    segmenter = Segmenter(LABELS, rules, class_ids)
    return [segment for step in steps for segment in segmenter.push(step)] + segmenter.finish()


def list_spans(segments: Iterable[Segment]) -> list[tuple[str, float, float]]:
    return [(s.gloss, round(s.start_s, 3), round(s.end_s, 3)) for s in segments]


NOTHING = (0.0,) * 7


@pytest.mark.parametrize(("curve", "spans"), [
    # Borders are where the curve crosses half of its peak: here halfway between the middles of two steps.
    ((0, 0, 0.8, 0.8, 0, 0, 0), [(2.5, 4.5)]),
    ((0, 0, 0.8, 0.8, 0.4, 0, 0), [(2.5, 5.0)]),
    ((0, 0, 0.2, 0.8, 0.2, 0, 0), [(3 + 1 / 3, 4 + 2 / 3)]),
    # Hysteresis: a segment must reach 0.5 once and lasts while it is above half of that.
    ((0, 0.6, 0.3, 0.3, 0.6, 0, 0), [(1.5, 5.5)]),
    ((0, 0.6, 0.2, 0.3, 0.6, 0, 0), [(1.5, 2.75), (4.0, 5.5)]),
    ((0, 0.49, 0.49, 0.49, 0, 0, 0), []),
    ((0, 0.3, 0.5, 0.3, 0, 0, 0), [(1.833, 4.167)]),
    # At the ends of the video.
    ((0.8, 0.8, 0, 0, 0, 0, 0), [(0.5, 2.5)]),
    ((0, 0, 0, 0, 0, 0, 0.8), [(6.5, 7.5)]),
    ((0.8,) * 7, [(0.5, 7.5)]),
    (NOTHING, []),
], ids=str)  # fmt: skip
def test_confidence_curve_becomes_segments(curve: Sequence[float], spans: list[tuple[float, float]]) -> None:
    found = find_segments(make_steps(curve, NOTHING, NOTHING))
    assert [(s.start_s, s.end_s) for s in found] == [pytest.approx(where, abs=1e-3) for where in spans]
    assert {(s.gloss, s.class_id) for s in found} <= {("book", 0)}


def test_segment_has_its_peak_confidence_and_time() -> None:
    (segment,) = find_segments(make_steps((0, 0.6, 0.9, 0.7, 0, 0, 0), NOTHING, NOTHING))
    assert (segment.confidence, segment.peak_s) == (pytest.approx(0.9), 3.0)


def test_short_segments_are_dropped() -> None:
    steps = make_steps((0, 0, 0.6, 0, 0, 0, 0), NOTHING, NOTHING)
    assert len(find_segments(steps, Segmentation(min_length_s=0.9))) == 1
    assert find_segments(steps, Segmentation(min_length_s=1.1)) == []


def test_less_confident_of_two_overlapping_segments_is_dropped() -> None:
    sure, unsure, later = (0, 0.9, 0.9, 0.9, 0, 0, 0), (0, 0.6, 0.6, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0.7, 0.7)
    assert list_spans(find_segments(make_steps(sure, unsure, later))) == [("book", 1.5, 4.5), ("hello", 5.5, 7.5)]
    assert list_spans(find_segments(make_steps(unsure, sure, later))) == [("drink", 1.5, 4.5), ("hello", 5.5, 7.5)]


def test_finished_segment_waits_for_a_stronger_unfinished_one() -> None:
    rising, first = (0, 0.3, 0.4, 0.95, 0.95, 0, 0), (0, 0.6, 0.6, 0, 0, 0, 0)
    segmenter = Segmenter(LABELS, Segmentation(overlap=0.1))
    found_per_step = [[s.gloss for s in segmenter.push(step)] for step in make_steps(first, rising, NOTHING)]
    assert found_per_step == [[], [], [], [], [], ["drink"], []] and segmenter.finish() == []


def test_first_of_two_slightly_overlapping_segments_keeps_the_overlap() -> None:
    first, second = (0, 0.9, 0.9, 0.6, 0, 0, 0), (0, 0, 0, 0.6, 0.8, 0.8, 0)
    found = find_segments(make_steps(first, second, NOTHING))
    assert [s.gloss for s in found] == ["book", "drink"]
    assert found[1].start_s == found[0].end_s


def test_segment_is_emitted_with_the_step_that_ends_it() -> None:
    segmenter = Segmenter(LABELS)
    found_per_step = [len(segmenter.push(step)) for step in make_steps((0, 0.9, 0.9, 0, 0, 0.9, 0), NOTHING, NOTHING)]
    assert found_per_step == [0, 0, 0, 1, 0, 0, 1]


def test_endless_run_is_cut_and_memory_stays_bounded() -> None:
    segmenter = Segmenter(LABELS, Segmentation(max_length_s=10))
    num_kept, found = [], []
    for n in range(1000):
        found += segmenter.push(Step(n, n + 1, np.array([0.9, 0.3, 0.1], np.float32)))
        going_on = segmenter._hysteresis.going_on.values()
        num_kept.append(sum(len(run.times_s) for run in going_on) + len(segmenter._undecided) + len(segmenter._kept))
    found += segmenter.finish()
    assert max(num_kept) < 40
    assert [s.gloss for s in found] == ["book"] * 100
    assert all(s.end_s - s.start_s <= 11 for s in found)
    assert all(a.end_s <= b.start_s for a, b in pairwise(found))


def test_only_requested_glosses_are_found() -> None:
    steps = make_steps((0, 0.9, 0.9, 0, 0, 0, 0), (0, 0.6, 0.6, 0, 0, 0, 0), NOTHING)
    assert list_spans(find_segments(steps, class_ids=[1, 2])) == [("drink", 1.5, 3.5)]
    assert find_segments([]) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=40),
    st.floats(0.05, 1),
    st.floats(0.1, 1),
    st.floats(0, 0.9),
)
def test_segments_of_any_confidences_obey_the_rules(
    values: list[tuple[float, ...]], min_confidence: float, release: float, overlap: float
) -> None:
    rules = Segmentation(min_confidence, release, min_length_s=0.1, overlap=overlap, max_length_s=5)
    steps = [Step(0.3 * n, 0.3 * n + 0.3, np.array(row, np.float32)) for n, row in enumerate(values)]
    found = sorted(find_segments(steps, rules), key=lambda s: s.start_s)
    for segment in found:
        assert segment.confidence >= np.float32(min_confidence) - 1e-6
        assert steps[0].start_s <= segment.start_s <= segment.peak_s <= segment.end_s <= steps[-1].end_s
        assert 0.1 <= segment.end_s - segment.start_s <= 5.7
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(found))


@pytest.mark.parametrize(("rules", "says"), [
    ({"min_confidence": 0}, "min_confidence is 0: for a timeline it must be above 0 and at most 1"),
    ({"min_confidence": 1.1}, "min_confidence is 1.1"), ({"min_confidence": float("nan")}, "min_confidence is nan"),
    ({"release": 0}, "release is 0"), ({"release": 2}, "release is 2"),
    ({"overlap": 1}, "overlap is 1"), ({"overlap": -0.1}, "overlap is -0.1"),
    ({"min_length_s": -1}, "min_length_s is -1 and"), ({"min_length_s": 10}, "is 10 and max_length_s is 10.0"),
], ids=str)  # fmt: skip
def test_invalid_rules_are_rejected(rules: dict[str, float], says: str) -> None:
    with pytest.raises(AslTritonError, match=says):
        Segmentation(**rules)


def test_curves_are_those_of_the_requested_glosses() -> None:
    steps = make_steps((0.1, 0.2), (0.3, 0.9), (0.5, 0.4))
    drink, hello = select_curves(steps, LABELS, [1, 2])
    assert [(curve.gloss, curve.class_id) for curve in (drink, hello)] == [("drink", 1), ("hello", 2)]
    assert drink.confidences == pytest.approx([0.3, 0.9]) and drink.times_s == pytest.approx([1, 2])
    assert [curve.gloss for curve in select_curves(steps, LABELS, [2, 0])] == ["hello", "book"]
