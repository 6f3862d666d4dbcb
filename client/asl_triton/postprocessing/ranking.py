"""From logits to glosses: pooling over windows, score, ranking, vocabulary, unsure."""

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
    """What is wanted of the logits. A vocabulary ranks only its glosses; their confidences stay as they are.

    Answers are unsure below `min_confidence`, 0 to 1. None asks for the model's own, see `with_threshold`.
    """

    top_k: int = DEFAULT_TOP_K
    vocabulary: Collection[str] | None = None
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise AslTritonError(f"top_k is {self.top_k}: ask for one gloss or more")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise AslTritonError(f"min_confidence is {self.min_confidence}: it goes from 0 to 1")

    def with_threshold(self, min_confidence: float | None) -> "Ranking":
        """The same, with a model's own threshold where none was asked for."""
        return self if self.min_confidence is not None else replace(self, min_confidence=min_confidence)

    def is_unsure(self, predictions: Sequence[Prediction]) -> bool | None:
        """Whether the best gloss is below the threshold; None without a threshold."""
        return None if self.min_confidence is None else predictions[0].confidence < self.min_confidence

    def class_ids(self, labels: Sequence[str]) -> ClassIds:
        """The classes that may be ranked, ascending.

        Raises:
            LabelsError: the vocabulary names a gloss that the model does not know, or none.
        """
        if self.vocabulary is None:
            return np.arange(len(labels))
        unknown = sorted(set(self.vocabulary) - set(labels))
        if unknown:
            raise LabelsError(
                f"the model does not know {len(unknown)} of the {len(set(self.vocabulary))} glosses asked for: "
                f"{', '.join(unknown[:5])}. `asl-triton models --labels` lists those that it knows"
            )
        if not self.vocabulary:
            raise LabelsError("the vocabulary is empty: list a gloss a line")
        return np.flatnonzero([label in self.vocabulary for label in labels])


def pool_windows(window_logits: Sequence[Logits], preset: Preset) -> Logits:
    """The logits (C,) of a clip from those of its windows, each (C,)."""
    stacked = np.stack(window_logits)
    pooled: Logits = stacked.max(axis=0) if preset.window_pooling == "max" else stacked.mean(axis=0)
    return pooled


def compute_confidences(logits: npt.NDArray[np.floating[Any]], preset: Preset) -> npt.NDArray[np.float64]:
    """Logits (..., C) as the preset's score, 0 to 1."""
    wide = logits.astype(np.float64)
    if preset.score == "softmax":
        exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
        softmax: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return softmax
    # The sigmoid, with no overflow on either side.
    sigmoid: npt.NDArray[np.float64] = np.exp(np.minimum(wide, 0)) / (1 + np.exp(-np.abs(wide)))
    return sigmoid


def rank(
    logits: Logits, labels: Sequence[str], preset: Preset, class_ids: ClassIds, top_k: int
) -> tuple[Prediction, ...]:
    """The `top_k` best glosses of a clip among `class_ids` (ascending), by logit; of equal ones the lower class
    first."""
    scores = compute_confidences(logits, preset)
    best = class_ids[np.argsort(-logits[class_ids], kind="stable")][:top_k]
    return tuple(
        Prediction(place, labels[c], int(c), float(scores[c]), float(logits[c]))
        for place, c in enumerate(best, start=1)
    )
