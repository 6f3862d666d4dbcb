"""Classifies clips by taught signs, and detects clips that show none of them.

A clip's embedding is compared with each sign's prototype, the mean of its examples, by cosine similarity (Snell et al.
2017). A linear discriminant analysis with a regularized covariance first shrinks the directions in which examples of
the same sign differ. A threshold and a scale, found by leaving examples out, turn similarities into confidences.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asl_triton.teaching.embedding import scale_to_unit

Floats = npt.NDArray[np.float64]

SHRINKAGE = 0.5  # of the covariance toward a multiple of the identity
MAX_FOLDS = 5
MAX_RESIDUALS = 1_000  # examples used to estimate the covariance
MAX_HELD_OUT = 1_000  # examples per fold
# The share of examples below the threshold, each compared with prototypes made without it. Fewer new clips are
# rejected, because they are compared with prototypes of all examples.
REJECTED = 0.1
MIN_EXAMPLES = 2  # per sign, to leave one out
# Used if there is only one sign and it has only one example.
LONE_THRESHOLD, LONE_SCALE = 0.9, 80.0
SCALES = np.geomspace(5.0, 2_000.0, 60)


@dataclass(frozen=True)
class Whitening:
    """A linear map that scales the directions `axes` (R, D) by `rest` plus `gains` (R,), and all others by `rest`."""

    axes: Floats
    gains: Floats
    rest: float

    @classmethod
    def fit(cls, embeddings: Floats, sign_ids: npt.NDArray[np.intp]) -> "Whitening | None":
        """Fit to embeddings (N, D) and their signs (N,). Returns None if no sign has two different examples."""
        counts = np.bincount(sign_ids)
        several = np.flatnonzero(counts[sign_ids] >= MIN_EXAMPLES)
        if not len(several):
            return None
        several = several[:: -(-len(several) // MAX_RESIDUALS)]
        means = average_by_sign(embeddings, sign_ids)
        residuals = embeddings[several] - means[sign_ids[several]]
        # Compute the principal axes from the smaller product, since there are fewer residuals than dimensions.
        squares, sides = np.linalg.eigh(residuals @ residuals.T)
        present = squares > 1e-12
        if not present.any():  # all examples of a sign are the same
            return None
        axes = (sides[:, present] / np.sqrt(squares[present])).T @ residuals
        num_signs = len(np.unique(sign_ids[several]))
        variances = squares[present] / max(len(several) - num_signs, 1)
        floor = SHRINKAGE * variances.mean()
        rest = 1 / np.sqrt(floor)
        return cls(axes, 1 / np.sqrt(floor + (1 - SHRINKAGE) * variances) - rest, rest)

    def apply(self, embeddings: Floats) -> Floats:
        """Whiten embeddings (N, D)."""
        whitened: Floats = self.rest * embeddings + (embeddings @ self.axes.T * self.gains) @ self.axes
        return whitened


@dataclass(frozen=True)
class Prototypes:
    """One unit vector per sign (K, D), in the whitened space."""

    vectors: Floats
    whitening: Whitening | None

    @classmethod
    def fit(cls, embeddings: Floats, sign_ids: npt.NDArray[np.intp]) -> "Prototypes":
        """Compute the prototypes from embeddings (N, D) and their signs (N,), from 0 to K - 1."""
        whitening = Whitening.fit(embeddings, sign_ids)
        whitened = scale_to_unit(whitening.apply(embeddings) if whitening else embeddings)
        return cls(scale_to_unit(average_by_sign(whitened, sign_ids)), whitening)

    def compare(self, embeddings: npt.NDArray[np.floating[Any]]) -> Floats:
        """Return the cosine similarities (N, K) of embeddings (N, D) to the prototypes."""
        wide = embeddings.astype(np.float64)
        similarities: Floats = scale_to_unit(self.whitening.apply(wide) if self.whitening else wide) @ self.vectors.T
        return similarities


@dataclass(frozen=True)
class SignClassifier:
    """Computes the confidence of each taught sign: sigmoid(`scale` * (similarity - `threshold`)).

    A clip with a confidence below one half for every sign shows none of them.
    """

    prototypes: Prototypes
    threshold: float
    scale: float

    @classmethod
    def fit(cls, embeddings: npt.NDArray[np.floating[Any]], sign_ids: npt.NDArray[np.intp]) -> "SignClassifier":
        """Fit to the examples' embeddings (N, D) and their signs (N,), from 0 to K - 1.

        Each example is compared with prototypes made without it. The threshold is the `REJECTED` quantile of the
        similarities to the examples' own signs; if every sign has only one example, it is the median similarity to the
        nearest other sign. The scale maximizes the likelihood that each example shows its own sign and not the nearest
        other one.
        """
        wide = embeddings.astype(np.float64)
        prototypes = Prototypes.fit(wide, sign_ids)
        held_out = compare_held_out(wide, sign_ids)
        own, others = held_out.own[np.isfinite(held_out.own)], held_out.others[np.isfinite(held_out.others)]
        if len(own):
            threshold = float(np.quantile(own, REJECTED))
        elif len(others):
            threshold = float(np.median(others))
        else:
            return cls(prototypes, LONE_THRESHOLD, LONE_SCALE)
        return cls(prototypes, threshold, choose_scale(own - threshold, others - threshold))

    def logits(self, embeddings: npt.NDArray[np.floating[Any]]) -> Floats:
        """Return the logits (N, K) of embeddings (N, D); their sigmoid is the confidence."""
        return self.scale * (self.prototypes.compare(embeddings) - self.threshold)


def average_by_sign(vectors: Floats, sign_ids: npt.NDArray[np.intp]) -> Floats:
    """Return the mean (K, D) of each sign's vectors (N, D)."""
    sums = np.zeros((int(sign_ids.max()) + 1, vectors.shape[1]))
    np.add.at(sums, sign_ids, vectors)
    means: Floats = sums / np.bincount(sign_ids)[:, None]
    return means


@dataclass(frozen=True)
class HeldOut:
    """Examples compared with prototypes made without them.

    `examples` (M,) are their indices. `own` (M,) are the similarities to their own sign, NaN for a sign's only example.
    `nearest` (M,) is the nearest other sign, and `others` (M,) the similarity to it, NaN if there is no other sign.
    """

    examples: npt.NDArray[np.intp]
    own: Floats
    nearest: npt.NDArray[np.intp]
    others: Floats


def compare_held_out(embeddings: Floats, sign_ids: npt.NDArray[np.intp]) -> HeldOut:
    """Compare examples (N, D) of signs (N,) in up to `MAX_FOLDS` folds, each with prototypes of the other folds."""
    counts = np.bincount(sign_ids)
    is_lone = counts[sign_ids] < MIN_EXAMPLES
    order = np.zeros(len(sign_ids), np.intp)  # an example's index within its sign
    by_sign = np.argsort(sign_ids, kind="stable")
    order[by_sign] = np.arange(len(sign_ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    folds = []
    for fold in range(min(int(counts.max()), MAX_FOLDS)):
        held_out = (order % MAX_FOLDS == fold) & ~is_lone
        asked = np.flatnonzero(held_out | (is_lone & (fold == 0)))
        asked = asked[:: -(-len(asked) // MAX_HELD_OUT)]
        similarities = Prototypes.fit(embeddings[~held_out], sign_ids[~held_out]).compare(embeddings[asked])
        rows, signs = np.arange(len(asked)), sign_ids[asked]
        own = np.where(is_lone[asked], np.nan, similarities[rows, signs])
        similarities[rows, signs] = -np.inf
        nearest = similarities.argmax(axis=1)
        others = similarities[rows, nearest]
        folds.append((asked, own, nearest, np.where(np.isfinite(others), others, np.nan)))
    return HeldOut(*(np.concatenate(parts) for parts in zip(*folds, strict=True)))


def choose_scale(own: Floats, others: Floats) -> float:
    """Return the most likely scale for similarities minus the threshold: `own` (M,) to the examples' own signs and
    `others` (N,) to the nearest other signs."""
    likelihoods = [
        sum(-np.logaddexp(0, sign * scale * values).mean() for sign, values in ((-1, own), (1, others)) if len(values))
        for scale in SCALES
    ]
    return float(SCALES[int(np.argmax(likelihoods))])
