"""Turning logits into ranked glosses."""

import math

import numpy as np
import pytest

from asl_triton.errors import AslTritonError, LabelsError
from asl_triton.postprocessing.ranking import Ranking, compute_confidences, pool_windows, rank
from asl_triton.presets import PRESETS
from asl_triton.results import Prediction, Recognition

SIGMOID, SOFTMAX = PRESETS["wlasl"], PRESETS["bsl1k"]
LABELS = ("book", "drink", "hello", "help")
ALL = Ranking().class_ids(LABELS)


def make_logits(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_windows_are_pooled_by_the_preset() -> None:
    windows = [make_logits(1, 5, 3), make_logits(3, 1, 3)]
    assert pool_windows(windows, SIGMOID).tolist() == [3, 5, 3]
    assert pool_windows(windows, SOFTMAX).tolist() == [2, 3, 3]
    assert pool_windows(windows[:1], SOFTMAX).tolist() == [1, 5, 3]


def test_confidences_use_the_score_of_the_preset() -> None:
    values = make_logits(-2, 0, 3)
    assert compute_confidences(values, SIGMOID) == pytest.approx([1 / (1 + math.exp(-v)) for v in (-2, 0, 3)])
    total = sum(math.exp(v) for v in (-2, 0, 3))
    assert compute_confidences(values, SOFTMAX) == pytest.approx([math.exp(v) / total for v in (-2, 0, 3)])


@pytest.mark.parametrize("preset", [SIGMOID, SOFTMAX], ids=["sigmoid", "softmax"])
def test_extreme_logits_do_not_overflow(preset: object) -> None:
    scores = compute_confidences(make_logits(-3e38, -1000, 0, 1000, 3e38), preset)  # type: ignore[arg-type]
    assert np.isfinite(scores).all()
    assert scores[0] == 0 and scores[-1] == 1


def test_best_gloss_comes_first_and_ties_are_in_class_order() -> None:
    ranked = rank(make_logits(1, 2, 2, 0), LABELS, SIGMOID, ALL, 3)
    assert [(p.rank, p.gloss, p.class_id, p.logit) for p in ranked] == [
        (1, "drink", 1, 2.0), (2, "hello", 2, 2.0), (3, "book", 0, 1.0),
    ]  # fmt: skip
    assert ranked[0].confidence == pytest.approx(1 / (1 + math.exp(-2)))


def test_top_k_beyond_all_glosses_returns_all() -> None:
    assert len(rank(make_logits(1, 2, 3, 4), LABELS, SIGMOID, ALL, 100)) == 4


def test_vocabulary_ranks_only_its_glosses_and_keeps_their_confidences() -> None:
    values = make_logits(1, 9, 3, 2)
    everything = {p.gloss: p.confidence for p in rank(values, LABELS, SOFTMAX, ALL, 10)}
    ranked = rank(values, LABELS, SOFTMAX, Ranking(vocabulary=["help", "hello", "help"]).class_ids(LABELS), 10)
    assert [(p.rank, p.gloss, p.class_id) for p in ranked] == [(1, "hello", 2), (2, "help", 3)]
    assert all(p.confidence == everything[p.gloss] for p in ranked)


@pytest.mark.parametrize(("vocabulary", "says"), [
    (["book", "cat", "dog"], "does not know 2 of the 3 glosses in the vocabulary: cat, dog"),
    ([], "the vocabulary is empty"),
    ("book", "does not know"),
], ids=str)  # fmt: skip
def test_invalid_vocabulary_is_rejected(vocabulary: list[str], says: str) -> None:
    with pytest.raises(LabelsError, match=says):
        Ranking(vocabulary=vocabulary).class_ids(LABELS)


@pytest.mark.parametrize("arguments", [
    {"top_k": 0}, {"top_k": -1}, {"min_confidence": -0.1}, {"min_confidence": 1.1}, {"min_confidence": float("nan")},
], ids=str)  # fmt: skip
def test_invalid_ranking_is_rejected(arguments: dict[str, float]) -> None:
    with pytest.raises(AslTritonError, match=next(iter(arguments))):
        Ranking(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("requested", "own", "is_unsure"), [
    (None, None, None), (None, 0.3, False), (None, 0.31, True), (0.31, 0.1, True), (0.1, 0.9, False), (0.0, 0.9, False),
], ids=str)  # fmt: skip
def test_answer_is_unsure_below_the_requested_threshold_or_else_the_models_own(
    requested: float | None, own: float | None, is_unsure: bool | None
) -> None:
    predictions = (Prediction(1, "book", 0, 0.3, -0.8),)
    assert Ranking(min_confidence=requested).with_threshold(own).is_unsure(predictions) is is_unsure


def test_recognition_names_its_best_gloss() -> None:
    predictions = (Prediction(1, "book", 0, 0.9, 2.0), Prediction(2, "help", 3, 0.1, -2.0))
    recognition = Recognition("a.mp4", "signs", predictions, False, 25, 1.0, 1, 0.0, 0.0)
    assert (recognition.gloss, recognition.confidence) == ("book", 0.9)
