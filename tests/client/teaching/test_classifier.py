"""The classifier separates taught signs and rejects signs that were not taught."""

import numpy as np
import pytest

from asl_triton.teaching.classifier import SignClassifier, compare_held_out
from tests.client.teaching.taught import show, teach

SIGNS = 8


def compute_logits(classifier: SignClassifier, sign: int, take: int, spread: float = 0.3) -> np.ndarray:
    """Return the logits (K,) of a clip."""
    return classifier.logits(show(sign, take, spread).vector[None])[0]


@pytest.mark.parametrize("takes", [1, 2, 3, 5, 12])
def test_new_clips_are_recognized_and_other_signs_are_not(takes: int) -> None:
    classifier = teach(SIGNS, takes).classifier()
    taught = [compute_logits(classifier, sign, 100 + take) for sign in range(SIGNS) for take in range(5)]
    others = [compute_logits(classifier, 50 + sign, take) for sign in range(SIGNS) for take in range(5)]
    assert [int(logits.argmax()) for logits in taught] == [sign for sign in range(SIGNS) for _ in range(5)]
    assert np.mean([logits.max() > 0 for logits in taught]) >= 0.75
    assert np.mean([logits.max() < 0 for logits in others]) >= (0.5 if takes == 1 else 0.75)


def test_confidence_falls_with_similarity() -> None:
    classifier = teach(SIGNS, 5).classifier()
    near, far = compute_logits(classifier, 0, 200, spread=0.1), compute_logits(classifier, 0, 200, spread=3.0)
    assert near[0] > far[0]


def test_one_example_of_one_sign_is_enough() -> None:
    classifier = teach(1, 1).classifier()
    assert compute_logits(classifier, 0, 1)[0] > 0 > compute_logits(classifier, 9, 0)[0]


def test_identical_examples_give_finite_logits() -> None:
    embeddings = np.repeat(np.stack([show(0, 0).vector, show(1, 0).vector]), 3, axis=0)
    classifier = SignClassifier.fit(embeddings, np.array([0, 0, 0, 1, 1, 1]))
    assert np.isfinite(classifier.logits(embeddings)).all()
    assert classifier.logits(embeddings).argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1]


def test_directions_of_high_variance_count_less() -> None:
    rng = np.random.default_rng(0)
    sign_ids = np.repeat([0, 1], 20)
    embeddings = np.zeros((40, 8))
    embeddings[:, 0] = np.where(sign_ids == 0, 0.3, -0.3)  # separates them
    embeddings[:, 1:4] = rng.normal(size=(40, 3))  # noise
    embeddings[:, 7] = 1
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    half = np.arange(40) % 2 == 0
    classifier = SignClassifier.fit(embeddings[half], sign_ids[half])
    plain = np.stack([embeddings[half & (sign_ids == sign)].mean(axis=0) for sign in (0, 1)])
    right = (classifier.logits(embeddings[~half]).argmax(axis=1) == sign_ids[~half]).mean()
    assert right >= 0.1 + ((embeddings[~half] @ plain.T).argmax(axis=1) == sign_ids[~half]).mean()


def test_each_example_is_held_out_once() -> None:
    sign_ids = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 2])
    vectors = np.stack([show(int(sign), take).vector for take, sign in enumerate(sign_ids)]).astype(np.float64)
    held_out = compare_held_out(vectors, sign_ids)
    assert sorted(held_out.examples.tolist()) == list(range(10))
    lone = held_out.examples == 9
    assert np.isnan(held_out.own[lone]).all() and np.isfinite(held_out.own[~lone]).all()
    assert (held_out.nearest != sign_ids[held_out.examples]).all() and np.isfinite(held_out.others).all()


def test_thousands_of_signs_are_learned() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2000, 128))
    sign_ids = np.repeat(np.arange(2000), 2)
    vectors = means[sign_ids] + 0.2 * rng.normal(size=(4000, 128))
    classifier = SignClassifier.fit(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), sign_ids)
    queries = means + 0.2 * rng.normal(size=means.shape)
    assert (classifier.logits(queries).argmax(axis=1) == np.arange(2000)).mean() > 0.99
