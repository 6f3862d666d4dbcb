"""Turning clips into vectors."""

import numpy as np
import pytest

from asl_triton.teaching.embedding import MAX_FOLDED, average_embeddings, embed_clip, fold_classes
from tests.client.teaching.taught import NUM_CLASSES, NUM_FEATURES, answer, show


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 37])
def test_clip_of_any_length_becomes_a_unit_vector_of_fixed_size(num_steps: int) -> None:
    features, _ = answer(0, 0)
    steps = np.random.default_rng(1).normal(size=(num_steps, NUM_CLASSES)).astype(np.float32)
    vector = embed_clip(features, steps).vector
    assert vector.shape == (NUM_FEATURES + 5 * NUM_CLASSES,) and vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_direction_of_a_movement_matters() -> None:
    features, steps = answer(0, 0)
    forth, back = embed_clip(features, steps), embed_clip(features, steps[::-1])
    assert forth.vector @ back.vector < 0.99 < forth.vector @ forth.vector


def test_black_clip_has_no_nan() -> None:
    assert np.isfinite(
        embed_clip(np.zeros(NUM_FEATURES, np.float32), np.zeros((3, NUM_CLASSES), np.float32)).vector
    ).all()


def test_energy_is_high_where_the_model_knows_the_sign() -> None:
    features, steps = answer(0, 0)
    known = steps + np.eye(NUM_CLASSES, dtype=np.float32)[2] * 10
    assert embed_clip(features, known).energy > embed_clip(features, steps).energy + 5


def test_many_classes_are_folded_but_stay_distinct() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(4, 2731)).astype(np.float32) for _ in range(2))
    folded = [fold_classes(steps) for steps in (one, one + 0.1 * other, other)]
    assert {steps.shape for steps in folded} == {(4, MAX_FOLDED)}

    def compare(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))

    assert compare(folded[0], folded[1]) > 0.95 and abs(compare(folded[0], folded[2])) < 0.15
    np.testing.assert_array_equal(fold_classes(one), fold_classes(one))  # does not depend on a random state


def test_clip_of_several_windows_gets_the_mean_embedding() -> None:
    one, other = show(0, 0), show(0, 1)
    mean = average_embeddings([one, other])
    assert np.linalg.norm(mean.vector) == pytest.approx(1, abs=1e-6)
    assert mean.vector @ one.vector == pytest.approx(float(mean.vector @ other.vector), abs=1e-5)
    assert average_embeddings([one]) is one
