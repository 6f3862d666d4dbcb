"""Measures the cost of quantization: compares the int8 network with the float32 one on held-out clips."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asl_triton.errors import VideoError
from asl_triton.evaluation.dataset import LabeledClip
from asl_triton.evaluation.metrics import Accuracy, evaluate
from asl_triton.evaluation.scoring import BEST_KEPT, ClassMapping, ScoredClip
from asl_triton.postprocessing.ranking import pool_windows, rank
from asl_triton.results import Logits
from asl_triton_export.formats import Forward
from asl_triton_export.quantization.calibration import Calibration, read_windows
from asl_triton_export.triton_config import ServedNetwork

TOP = 5


@dataclass(frozen=True)
class QuantizationCost:
    """The quantized network compared with the float32 one on `clips` clips; logits are those of whole clips.

    `accuracies` are those of the float32 and the quantized network, if the clips have labels.
    """

    quantized_with: int  # clips
    frames: int  # of those clips
    apart: bool  # whether the rest was measured on other clips
    clips: int
    same_best: int  # clips with the same best gloss
    top5_in_common: float  # glosses that both top fives share, mean over clips
    max_difference: float  # logits
    spread: float  # logits, between a clip's smallest and largest, mean over clips
    accuracies: tuple[Accuracy, Accuracy] | None


def measure_cost(
    exact: Forward, quantized: Forward, network: ServedNetwork, calibration: Calibration, labels: Sequence[str]
) -> QuantizationCost:
    """Compare both networks on the held-out clips. Clips that cannot be read are skipped.

    Raises:
        VideoError: none of the clips can be read.
    """
    pairs: list[tuple[Logits, Logits]] = []
    labeled: list[LabeledClip] = []
    for clip in calibration.held_out:
        try:
            windows = [network.tensor(window) for window in read_windows(clip, network.preset)]
        except VideoError:
            continue
        exact_logits = pool_windows([exact(window) for window in windows], network.preset)
        quantized_logits = pool_windows([quantized(window) for window in windows], network.preset)
        pairs.append((exact_logits, quantized_logits))
        labeled += [clip] if isinstance(clip, LabeledClip) else []
    if not pairs:
        raise VideoError(f"none of {len(calibration.held_out)} clips in {calibration.folder} can be read")
    return QuantizationCost(
        quantized_with=len(calibration.clips),
        frames=sum(len(clip) for clip in calibration.clips),
        apart=calibration.apart,
        clips=len(pairs),
        same_best=sum(bool(one.argmax() == other.argmax()) for one, other in pairs),
        top5_in_common=statistics.mean(len(find_best(one) & find_best(other)) for one, other in pairs),
        max_difference=max(float(np.abs(one - other).max()) for one, other in pairs),
        spread=statistics.mean(float(np.ptp(one)) for one, _ in pairs),
        accuracies=compute_accuracies(pairs, labeled, network, labels) if labeled else None,
    )


def find_best(logits: Logits) -> set[int]:
    """Return the best five classes."""
    return set(np.argsort(-logits, kind="stable")[:TOP].tolist())


def compute_accuracies(
    pairs: Sequence[tuple[Logits, Logits]],
    clips: Sequence[LabeledClip],
    network: ServedNetwork,
    labels: Sequence[str],
) -> tuple[Accuracy, Accuracy]:
    """Compute the accuracy of both networks as `asl-triton evaluate` does."""
    classes = ClassMapping.of(labels)
    both = []
    for answers in zip(*pairs, strict=True):
        scored = [score_clip(clip, logits, labels, network) for clip, logits in zip(clips, answers, strict=True)]
        both.append(evaluate(scored, classes).per_instance)
    return both[0], both[1]


def score_clip(clip: LabeledClip, logits: Logits, labels: Sequence[str], network: ServedNetwork) -> ScoredClip:
    """Rank the classes of a clip, and find the rank of the right one."""
    ranked = rank(logits, labels, network.preset, np.arange(len(labels)), len(labels))
    order = [prediction.class_id for prediction in ranked]
    return ScoredClip(
        clip.name, clip.class_id, order.index(clip.class_id) + 1, tuple(order[:BEST_KEPT]), ranked[0].confidence
    )
