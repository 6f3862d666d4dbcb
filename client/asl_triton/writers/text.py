"""Formats results as text for callers that do not want files: CSV, JSON and WebVTT."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from asl_triton.postprocessing.segmentation import Segmentation, Segmenter
from asl_triton.results import Curve, Outcome, Recognition, Segment, Step, to_json_values
from asl_triton.writers import tables
from asl_triton.writers.tables import format_csv_header, format_csv_rows, iter_rows
from asl_triton.writers.timelines import format_webvtt

# The columns of the earlier project, ASL_Inference, then ours.
COLUMNS = ("word", "confidence", *(name for name in tables.COLUMNS if name not in ("gloss", "confidence")))


def format_csv(recognitions: Sequence[Recognition]) -> str:
    """Format recognitions as CSV, one row per clip and rank."""
    rows = ({**row, "word": row["gloss"]} for recognition in recognitions for row in iter_rows(recognition))
    return format_csv_header(COLUMNS) + format_csv_rows(COLUMNS, rows)


def format_json(outcomes: Sequence[Outcome]) -> str:
    """Format recognitions and failures as a JSON list, with all of their fields."""
    return json.dumps([to_json_values(outcome) for outcome in outcomes], indent=1)


def format_recognition_json(recognition: Recognition, curves: Sequence[Curve]) -> str:
    """Format one recognition with all of its fields, and `curves`: its best glosses' confidences at `times_s`."""
    document = to_json_values(recognition)
    document["curves"] = [
        {
            "gloss": curve.gloss,
            "class_id": curve.class_id,
            "times_s": [round(float(time_s), 4) for time_s in curve.times_s],
            "confidences": [round(float(confidence), 6) for confidence in curve.confidences],
        }
        for curve in curves
    ]
    return json.dumps(document, indent=1)


def format_vtt(recognition: Recognition, curves: Sequence[Curve], min_confidence: float) -> str:
    """Format WebVTT with one cue, without overlaps, wherever a curve's gloss is signed according to `Segmentation`.

    `min_confidence` must be above 0.
    """
    segments = segment_curves(curves, Segmentation(min_confidence))
    return format_webvtt(segments, f"{recognition.model}: {recognition.video}")


def segment_curves(curves: Sequence[Curve], rules: Segmentation) -> list[Segment]:
    """Find a clip's segments from the curves of its best glosses only. Returns them in order of their start."""
    if not curves or not len(curves[0].times_s):
        return []
    times_s = curves[0].times_s
    between_s = (times_s[:-1] + times_s[1:]) / 2
    half_s = (times_s[1] - times_s[0]) / 2 if len(times_s) > 1 else times_s[0]
    edges_s = np.concatenate([[max(times_s[0] - half_s, 0)], between_s, [times_s[-1] + half_s]])
    segmenter = Segmenter([curve.gloss for curve in curves], rules)
    segments: list[Segment] = []
    for place, (start_s, end_s) in enumerate(pairwise(edges_s)):
        values = np.array([curve.confidences[place] for curve in curves], np.float32)
        segments += segmenter.push(Step(float(start_s), float(end_s), values))
    segments += segmenter.finish()
    in_order = sorted(segments, key=lambda segment: segment.start_s)
    return [dataclasses.replace(segment, class_id=curves[segment.class_id].class_id) for segment in in_order]
