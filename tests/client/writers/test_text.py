"""Formatting answers as text for files."""

import csv
import json

import numpy as np
import pytest

from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.results import Curve, Failure, Prediction, Recognition
from asl_triton.writers.text import (
    COLUMNS,
    format_csv,
    format_json,
    format_recognition_json,
    format_vtt,
    segment_curves,
)

RECOGNITION = Recognition(
    video="a, b.mp4",
    model="signs",
    predictions=(Prediction(1, "thank you", 4, 0.75, 1.5), Prediction(2, "book", 0, 0.25, -1.0)),
    unsure=False,
    num_frames=50,
    duration_s=2.0,
    num_windows=1,
    decode_s=0.1,
    wait_s=0.2,
)


def make_curve(gloss: str, class_id: int, *confidences: float) -> Curve:
    """Build a curve with a step every 0.4 s, the first centered at 0.4 s."""
    times_s = 0.4 * np.arange(1, len(confidences) + 1)
    return Curve(gloss, class_id, times_s, np.array(confidences, np.float32))


def test_csv_starts_with_the_columns_of_the_earlier_project() -> None:
    text = format_csv([RECOGNITION])
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert COLUMNS[:2] == ("word", "confidence")
    first, second = csv.DictReader(text.splitlines())
    assert (first["word"], float(first["confidence"]), first["video"]) == ("thank you", 0.75, "a, b.mp4")
    assert (second["word"], second["rank"], second["class_id"], second["logit"]) == ("book", "2", "0", "-1.0")


def test_json_contains_all_outcomes_in_full() -> None:
    recognized, failed = json.loads(format_json([RECOGNITION, Failure("c.mp4", "empty")]))
    assert recognized["predictions"][0]["gloss"] == "thank you" and recognized["wait_s"] == 0.2
    assert (failed["video"], failed["error"]) == ("c.mp4", "empty")
    whole = json.loads(format_recognition_json(RECOGNITION, [make_curve("book", 0, 0.1, 0.9)]))
    assert whole["curves"] == [
        {"gloss": "book", "class_id": 0, "times_s": [0.4, 0.8], "confidences": [0.1, pytest.approx(0.9)]}
    ]


def test_segments_of_curves_keep_their_classes() -> None:
    curves = [
        make_curve("thank you", 4, 0.0, 0.9, 0.9, 0.0, 0.0, 0.0),
        make_curve("book", 0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.0),
    ]
    first, second = segment_curves(curves, Segmentation(0.5))
    assert (first.gloss, first.class_id, second.gloss, second.class_id) == ("thank you", 4, "book", 0)
    assert 0.4 < first.start_s < 0.8 and 1.2 < first.end_s < 1.6
    assert 1.6 < second.start_s < second.end_s < 2.4


def test_single_step_and_no_curves_are_segmented() -> None:
    (segment,) = segment_curves([make_curve("book", 0, 0.9)], Segmentation(0.5))
    assert (segment.start_s, segment.end_s) == pytest.approx((0.0, 0.8))
    assert segment_curves([], Segmentation(0.5)) == []


def test_webvtt_is_empty_if_nothing_passes_the_threshold() -> None:
    curves = [make_curve("book", 0, 0.2, 0.6, 0.6, 0.2)]
    assert "book" in format_vtt(RECOGNITION, curves, 0.5)
    assert format_vtt(RECOGNITION, curves, 0.7) == "WEBVTT\n\nNOTE signs: a, b.mp4\n"
