"""Turns a model's outputs for a clip into one vector. Clips of the same sign have similar vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

THIRDS = 3
# Step logits of more classes are folded to this size by feature hashing (Weinberger et al. 2009). Otherwise, 2,731
# glosses would give 14,679 values per clip.
MAX_FOLDED = 256


@dataclass(frozen=True)
class Embedding:
    """A clip's representation: a unit `vector` (D,) and the `energy` of the model's own glosses.

    The energy is the log-sum-exp of their logits, and is high if the model knows the sign (Liu et al. 2020).
    """

    vector: Vector
    energy: float


def embed_clip(features: npt.NDArray[np.float32], step_logits: npt.NDArray[np.float32]) -> Embedding:
    """Compute a clip's embedding from the model's features (F,) and step logits (S, C).

    Four parts have equal weight: the features; the mean step logits of the clip's first, middle and last third; the
    maximum of the step logits; and their standard deviation, a measure of how much the hands do. The parts were
    chosen by measurement (`python -m tests.benchmarks.teaching --embeddings`). Features alone do not capture the order
    of movements.
    """
    steps = fold_classes(step_logits)
    thirds = np.array_split(steps, THIRDS) if len(steps) >= THIRDS else [steps] * THIRDS
    parts = [
        features,
        np.concatenate([scale_to_unit(third.mean(axis=0)) for third in thirds]),
        steps.max(axis=0),
        steps.std(axis=0),
    ]
    vector = scale_to_unit(np.concatenate([scale_to_unit(part) for part in parts])).astype(np.float32)
    return Embedding(vector, float(np.logaddexp.reduce(step_logits.mean(axis=0, dtype=np.float64))))


def average_embeddings(embeddings: Sequence[Embedding]) -> Embedding:
    """Average the embeddings of a clip's windows."""
    if len(embeddings) == 1:
        return embeddings[0]
    vector = scale_to_unit(np.mean([embedding.vector for embedding in embeddings], axis=0)).astype(np.float32)
    return Embedding(vector, float(np.mean([embedding.energy for embedding in embeddings])))


def scale_to_unit(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Scale vectors (..., D) to length 1. Zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: npt.NDArray[np.floating[Any]] = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def fold_classes(step_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Fold step logits (S, C) to at most `MAX_FOLDED` values per step; each class is added to one or subtracted."""
    num_classes = step_logits.shape[1]
    if num_classes <= MAX_FOLDED:
        return step_logits
    # Knuth's multiplicative hash: the same on every machine and with every version of NumPy.
    hashes = np.arange(num_classes, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    signs = np.where(hashes & np.uint64(2**31), -1, 1).astype(np.float32)
    folded = np.zeros((MAX_FOLDED, len(step_logits)), np.float32)
    np.add.at(folded, (hashes >> np.uint64(16)) % np.uint64(MAX_FOLDED), (step_logits * signs).T)
    return folded.T
