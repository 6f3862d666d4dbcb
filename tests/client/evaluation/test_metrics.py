"""Metrics of a model: checked against results worked out by hand, and where they are undefined."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from asl_triton.errors import LabelsError
from asl_triton.evaluation.dataset import Dataset, LabeledClip
from asl_triton.evaluation.metrics import (
    choose_threshold,
    compute_calibration_error,
    compute_reliability,
    compute_wilson_interval,
    evaluate,
    format_accuracy,
)
from asl_triton.evaluation.report import EvaluationReport, render_page, write_report
from asl_triton.evaluation.scoring import ClassMapping, ScoredClip, ScoringRun, read_merge, score
from asl_triton.models.served import ServedModel
from asl_triton.presets import PRESETS
from asl_triton.results import Failure, Prediction, Recognition, SignerBox

LABELS = ("book", "drink", "hello", "home")


def make_answer(
    truth: int, rank: int, taken_for: int | None = None, confidence: float = 0.5, video: str = "v"
) -> ScoredClip:
    """Make an answer that ranks the true class at `rank`."""
    return ScoredClip(video, truth, rank, (truth if taken_for is None else taken_for,), confidence)


def make_recognition(*class_ids: int) -> Recognition:
    """Make a recognition that ranks the classes in this order."""
    ranked = tuple(Prediction(n, LABELS[c], c, 0.9 / n, 5.0 - n) for n, c in enumerate(class_ids, start=1))
    return Recognition("v", "m", ranked, False, 24, 1.0, 1, 0.1, 0.1)


def test_per_class_weighs_classes_equally_and_skips_those_without_clips() -> None:
    # book: 4 clips, 3 correct. home: 1 clip, its gloss sixth. The other two have no clips.
    answers = [make_answer(0, 1)] * 3 + [make_answer(0, 2, 1), make_answer(3, 6, 1)]
    metrics = evaluate(answers, ClassMapping.of(LABELS))
    assert metrics.clips == 5 and metrics.classes == 2 and metrics.vocabulary == 4
    assert metrics.per_instance.top1 == pytest.approx(3 / 5)
    assert metrics.per_instance.top5 == pytest.approx(4 / 5)
    assert metrics.per_instance.top10 == 1
    assert metrics.per_class.top1 == pytest.approx((3 / 4 + 0) / 2)
    assert metrics.per_class.top5 == pytest.approx((1 + 0) / 2)
    assert [(c.gloss, c.clips, c.top1) for c in metrics.by_class] == [("home", 1, 0.0), ("book", 4, 0.75)]


def test_most_confused_pairs_come_first_without_correct_answers() -> None:
    answers = (
        [make_answer(0, 1)] * 5
        + [make_answer(1, 2, 0)] * 2
        + [make_answer(2, 3, 0)] * 2
        + [make_answer(2, 1), make_answer(0, 2, 3)]
    )
    found = [(c.truth, c.taken_for, c.clips, c.of) for c in evaluate(answers, ClassMapping.of(LABELS)).confused]
    assert found == [("drink", "book", 2, 2), ("hello", "book", 2, 3), ("book", "home", 1, 6)]


def test_confusion_matrix_counts_every_clip_of_its_rows() -> None:
    labels = tuple(f"g{n:02}" for n in range(40))
    answers = [make_answer(truth, 2, (truth * 7 + n) % 40) for truth in range(20) for n in (1, 2, 3)]
    matrix = evaluate(answers, ClassMapping.of(labels)).confusion_matrix
    assert len(matrix.rows) == 12 and len(matrix.columns) == 16
    assert matrix.columns[:12] == matrix.rows
    assert all(len(row) == 17 and sum(row) == 3 for row in matrix.clips)


def test_correct_answers_leave_nothing_confused() -> None:
    metrics = evaluate([make_answer(0, 1, confidence=1.0)] * 3, ClassMapping.of(LABELS))
    assert metrics.confused == () and metrics.confusion_matrix.rows == ()
    assert metrics.per_class.top1 == 1 and metrics.calibration_error == 0


def test_calibration_error_matches_the_one_worked_out_by_hand() -> None:
    # Bin (0.6, 2/3]: confidence 0.65, 1 of 2 correct. Bin (14/15, 1]: confidence 1.0, 2 of 2 correct.
    # Two of four clips are off by 0.15.
    answers = [
        make_answer(0, 1, confidence=0.65),
        make_answer(0, 2, 1, confidence=0.65),
        *[make_answer(0, 1, confidence=1.0)] * 2,
    ]
    bins = compute_reliability(answers)
    assert [b.clips for b in bins] == [0] * 9 + [2] + [0] * 4 + [2]
    assert bins[0].accuracy is None and bins[0].confidence is None
    assert compute_calibration_error(bins) == pytest.approx(0.5 * 0.15)


@pytest.mark.parametrize(("confidence", "bin_index"), [
    (0.0, 0), (1e-9, 0), (1 / 15, 0), (0.0667, 1), (0.5, 7), (14 / 15, 13), (0.9334, 14), (1.0, 14),
])  # fmt: skip
def test_bins_are_open_below_and_closed_above(confidence: float, bin_index: int) -> None:
    assert [b.clips for b in compute_reliability([make_answer(0, 1, confidence=confidence)])].index(1) == bin_index


@pytest.mark.parametrize(("right", "wrong", "expected"), [
    # All correct: the lowest confidence, rounded down to a whole percent.
    ([0.9, 0.505], [], (0.5, 1.0, 1.0)),
    # A wrong answer at 0.6 outweighs nine right ones below it, but not ten.
    ([0.9, *[0.5] * 8], [0.6], (0.9, 0.1, 1.0)),
    ([0.9, *[0.5] * 10], [0.6], (0.5, 1.0, 11 / 12)),
    # Answers of the same confidence go together.
    ([0.7, 0.7, 0.95], [0.7], (0.95, 0.25, 1.0)),
    ([1.0], [0.0], (1.0, 0.5, 1.0)),
])  # fmt: skip
def test_threshold_is_where_correct_answers_most_outweigh_wrong_ones(
    right: list[float], wrong: list[float], expected: tuple[float, float, float]
) -> None:
    answers = [make_answer(0, 1, confidence=c) for c in right] + [make_answer(0, 2, 1, confidence=c) for c in wrong]
    threshold = choose_threshold(answers)
    assert threshold is not None
    assert (threshold.min_confidence, threshold.reached, threshold.accuracy) == pytest.approx(expected)


@pytest.mark.parametrize("right", [0, 1, 9])
def test_no_threshold_if_too_few_answers_are_correct(right: int) -> None:
    answers = [make_answer(0, 1, confidence=0.8)] * right + [make_answer(0, 2, 1, confidence=0.8)]
    assert choose_threshold(answers) is None
    page = render_page(make_report(answers, []))
    assert "Recommended threshold</dt><dd>none" in page


@pytest.mark.parametrize(("right", "clips", "low", "high"), [
    (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (388, 400, 0.9483, 0.9827),
])  # fmt: skip
def test_interval_agrees_with_published_tables(right: int, clips: int, low: float, high: float) -> None:
    assert compute_wilson_interval(right, clips) == pytest.approx((low, high), abs=1e-4)


def test_rank_counts_all_glosses() -> None:
    clip = LabeledClip(Path("v"), "v", "home", 3)
    known = score(clip, make_recognition(1, 0, 3, 2), ClassMapping.of(LABELS))
    assert known == ScoredClip("v", 3, 3, (1, 0, 3, 2), 0.9)


def test_merged_glosses_rank_as_the_best_of_them() -> None:
    classes = ClassMapping.of(LABELS, [["home", "book"]])
    assert classes.names == ("home / book", "drink", "hello")
    clip = LabeledClip(Path("v"), "v", "home", 3)
    assert score(clip, make_recognition(1, 0, 2, 3), classes).rank == 2  # book stands for home
    assert score(clip, make_recognition(0, 3, 1, 2), classes).best == (0, 1, 2)


def test_stored_ranking_is_limited_to_ten() -> None:
    labels = tuple(map(str, range(2000)))
    ranked = tuple(Prediction(n, str(n), n, 0.5, 0.0) for n in range(2000))
    whole = Recognition("v", "m", ranked, False, 24, 1.0, 1, 0.1, 0.1)
    known = score(LabeledClip(Path("v"), "v", "1999", 1999), whole, ClassMapping.of(labels))
    assert known.rank == 2000 and len(known.best) == 10


@pytest.mark.parametrize(("content", "message"), [
    ("book, zebra", "cannot merge 'zebra'"),
    ("book, drink\ndrink, home", "'drink' is merged twice"),
    ("book", "line 1: 'book' is alone"),
    ("\n \n", "is empty"),
    (b"\xff\xfe", "is not UTF-8"),
    (None, "cannot read"),
])  # fmt: skip
def test_unusable_merge_is_a_clear_error(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "merge.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelsError, match=message):
        ClassMapping.of(LABELS, read_merge(path))


def make_report(
    answers: list[ScoredClip], failures: list[Failure], labels: tuple[str, ...] = LABELS
) -> EvaluationReport:
    """Make a report on these answers."""
    model = ServedModel("small", "1", PRESETS["wlasl"], labels, "UINT8", "fp32", "ab", "test")
    dataset = Dataset((), labels, missing=tuple(f"{n:05}" for n in range(3000)), warnings=("something is odd",))
    known = ScoringRun(tuple(answers), tuple(failures))
    return EvaluationReport(Path("data"), None, dataset, model, ClassMapping.of(labels), known)


def test_report_is_json_without_nan(tmp_path: Path) -> None:
    report = make_report([make_answer(0, 1), make_answer(1, 2, 0)], [Failure("x", "is empty")])
    as_json, page = write_report(report, tmp_path / "new" / "folder")

    def no_constants(name: str) -> None:
        raise AssertionError(name)

    document = json.loads(as_json.read_text(), parse_constant=no_constants)
    assert (document["clips"], document["failed"], document["missing"]) == (2, 1, 3000)
    assert document["answers"][1] == {
        "video": "v", "gloss": "drink", "rank": 2, "best": ["book"], "confidence": 0.5, "signer_id": None
    }  # fmt: skip
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in as_json.parent.iterdir()) == ["evaluation.html", "evaluation.json"]


def test_page_is_self_contained_and_escapes_names() -> None:
    evil = "<script>alert(1)</script>"
    labels = (evil, '" onload="x', "&amp;", "home")
    page = render_page(make_report([make_answer(0, 2, 1), make_answer(1, 1)], [Failure(evil, evil)], labels))
    assert "<script" not in page and 'onload="x' not in page and evil not in page
    assert not any(word in page for word in ("http:", "https:", "src=", "@import", "url("))
    assert "3,000 videos" in page and "Something is odd." in page


def make_signer_answers(**ranks: list[int]) -> list[ScoredClip]:
    """Make the answers to the clips of several signers, from their ranks."""
    return [
        ScoredClip(f"{signer}{n}", 0, rank, (0,), 0.5, signer)
        for signer, signer_ranks in ranks.items()
        for n, rank in enumerate(signer_ranks)
    ]


def test_recall_mrr_and_dcg_follow_from_ranks() -> None:
    metrics = evaluate([make_answer(0, rank, 1) for rank in (1, 3, 15, 100)], ClassMapping.of(LABELS))
    recall = metrics.per_instance
    assert (recall.top1, recall.top5, recall.top10, recall.top20) == (0.25, 0.5, 0.5, 0.75)
    assert metrics.retrieval.mrr == pytest.approx((1 + 1 / 3 + 1 / 15 + 1 / 100) / 4)
    gains = [1, 0.5, 0.25, 1 / math.log2(101)]
    assert metrics.retrieval.dcg == pytest.approx(sum(gains) / 4)


def test_each_signer_and_their_spread_are_measured() -> None:
    metrics = evaluate(
        [*make_signer_answers(ann=[1, 1], ben=[2, 7, 1, 1], cid=[30]), make_answer(0, 1)], ClassMapping.of(LABELS)
    )
    assert [(s.signer, s.clips, s.top1, s.top5, s.top10, s.top20) for s in metrics.by_signer] == [
        ("cid", 1, 0.0, 0.0, 0.0, 0.0), ("ben", 4, 0.5, 0.75, 1.0, 1.0), ("ann", 2, 1.0, 1.0, 1.0, 1.0)
    ]  # fmt: skip
    assert metrics.by_signer[1].mrr == pytest.approx((1 / 2 + 1 / 7 + 2) / 4)
    spread = metrics.signer_spread
    assert spread is not None
    assert (spread.signers, spread.lowest, spread.median, spread.highest) == (3, 0.0, 0.5, 1.0)
    assert spread.deviation == pytest.approx(math.sqrt(((0.5**2) * 2) / 3))


def test_interval_over_signers_is_wider_than_over_clips_if_signers_differ() -> None:
    good, bad = [1] * 50, [2] * 50
    answers = make_signer_answers(**{f"s{n}": good if n % 2 else bad for n in range(10)})
    metrics = evaluate(answers, ClassMapping.of(LABELS))
    assert metrics.signer_intervals is not None
    low, high = metrics.signer_intervals.top1
    assert low < metrics.per_instance.top1 < high
    # 500 clips, but 10 signers: about 1.96 * sqrt(0.25 / 10) to each side.
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 10), abs=0.1)
    assert high - low > 3 * (metrics.top1_interval[1] - metrics.top1_interval[0])
    assert metrics.signer_intervals == evaluate(answers, ClassMapping.of(LABELS)).signer_intervals  # reproducible
    alike = evaluate(make_signer_answers(a=[1, 2], b=[2, 1]), ClassMapping.of(LABELS)).signer_intervals
    assert alike is not None and alike.top1 == (0.5, 0.5)


@pytest.mark.parametrize("answers", [[make_answer(0, 1)], make_signer_answers(a=[1, 2])])
def test_fewer_than_two_signers_have_no_interval(answers: list[ScoredClip]) -> None:
    assert evaluate(answers, ClassMapping.of(LABELS)).signer_intervals is None


def test_page_shows_the_signers() -> None:
    page = render_page(make_report(make_signer_answers(**{"P<1>": [1, 2], "P2": [1, 1]}), []))
    assert "Each signer" in page and "P&lt;1&gt;" in page and "bootstrap over signers" in page
    assert "Each signer" not in render_page(make_report([make_answer(0, 1)], []))


@pytest.mark.parametrize(("preset", "box", "warns"), [
    ("bsl1k-person", None, True), ("bsl1k-person", SignerBox(0, 0, 0.5, 1), False), ("wlasl", None, False)
])  # fmt: skip
def test_clips_without_a_box_are_reported_if_the_model_needs_one(
    preset: str, box: SignerBox | None, warns: bool
) -> None:
    dataset = Dataset((LabeledClip(Path("v"), "v", "book", 0),), LABELS).with_signer(box)
    model = replace(make_report([make_answer(0, 1)], []).model, preset=PRESETS[preset])
    report = replace(make_report([make_answer(0, 1)], []), dataset=dataset, model=model)
    assert any("have no box" in warning for warning in report.warnings) == warns


def test_accuracy_of_few_clips_is_shown_with_its_interval() -> None:
    assert format_accuracy(1.0, 1) == "100.0% (95 % interval 21% to 100%)"
    assert format_accuracy(5 / 9, 9) == "55.6% (95 % interval 27% to 81%)"
    assert format_accuracy(0.5, 10) == "50.0%"
