"""Turns logits into ranked glosses: pools windows, computes confidences, applies vocabularies and thresholds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from asl_triton.errors import AslTritonError, LabelsError
from asl_triton.presets import Preset
from asl_triton.results import Logits, Prediction

ClassIds = npt.NDArray[np.intp]

DEFAULT_TOP_K = 10


@dataclass(frozen=True)
class Ranking:
    """How to rank logits. With a vocabulary, only its glosses are ranked; their confidences do not change.

    Answers below `min_confidence`, 0 to 1, are unsure. None stands for the model's own, see `with_threshold`.
    """

    top_k: int = DEFAULT_TOP_K
    vocabulary: Collection[str] | None = None
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise AslTritonError(f"top_k is {self.top_k}: it must be at least 1")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise AslTritonError(f"min_confidence is {self.min_confidence}: it must be between 0 and 1")

    def with_threshold(self, min_confidence: float | None) -> "Ranking":
        """Return the same ranking, with the model's own threshold if the caller gave none."""
        return self if self.min_confidence is not None else replace(self, min_confidence=min_confidence)

    def is_unsure(self, predictions: Sequence[Prediction]) -> bool | None:
        """Return whether the best gloss is below the threshold, or None without a threshold."""
        return None if self.min_confidence is None else predictions[0].confidence < self.min_confidence

    def class_ids(self, labels: Sequence[str]) -> ClassIds:
        """Return the classes to rank, ascending.

        Raises:
            LabelsError: the vocabulary is empty, or has a gloss that the model does not know.
        """
        if self.vocabulary is None:
            return np.arange(len(labels))
        unknown = sorted(set(self.vocabulary) - set(labels))
        if unknown:
            raise LabelsError(
                f"the model does not know {len(unknown)} of the {len(set(self.vocabulary))} glosses in the vocabulary: "
                f"{', '.join(unknown[:5])}. `asl-triton models --labels` lists the glosses that it knows"
            )
        if not self.vocabulary:
            raise LabelsError("the vocabulary is empty: list one gloss per line")
        return np.flatnonzero([label in self.vocabulary for label in labels])


def pool_windows(window_logits: Sequence[Logits], preset: Preset) -> Logits:
    """Pool the logits of a clip's windows, each (C,), into the clip's logits (C,)."""
    stacked = np.stack(window_logits)
    pooled: Logits = stacked.max(axis=0) if preset.window_pooling == "max" else stacked.mean(axis=0)
    return pooled


def compute_confidences(logits: npt.NDArray[np.floating[Any]], preset: Preset) -> npt.NDArray[np.float64]:
    """Turn logits (..., C) into confidences, 0 to 1, by the preset's score."""
    wide = logits.astype(np.float64)
    if preset.score == "softmax":
        exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
        softmax: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return softmax
    # The sigmoid, written so that it does not overflow on either side.
    sigmoid: npt.NDArray[np.float64] = np.exp(np.minimum(wide, 0)) / (1 + np.exp(-np.abs(wide)))
    return sigmoid


def rank(
    logits: Logits, labels: Sequence[str], preset: Preset, class_ids: ClassIds, top_k: int
) -> tuple[Prediction, ...]:
    """Return the `top_k` best glosses among `class_ids` (ascending), by logit. Ties go to the lower class."""
    scores = compute_confidences(logits, preset)
    best = class_ids[np.argsort(-logits[class_ids], kind="stable")][:top_k]
    return tuple(
        Prediction(place, labels[c], int(c), float(scores[c]), float(logits[c]))
        for place, c in enumerate(best, start=1)
    )
