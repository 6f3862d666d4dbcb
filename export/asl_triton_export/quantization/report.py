"""What quantising a network cost: its answers beside those of the float32 one, on the clips held out."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from asl_triton.errors import VideoError
from asl_triton.evaluation.dataset import LabelledClip
from asl_triton.evaluation.metrics import Accuracy, evaluate
from asl_triton.evaluation.scoring import BEST_KEPT, Answer, Classes
from asl_triton.postprocessing.ranking import Ranking, pool, rank
from asl_triton.results import Logits
from asl_triton.transport.base import Array
from asl_triton_export.quantization.calibration import Calibration, windows_of
from asl_triton_export.triton_config import ServedNetwork

Ask = Callable[[Array], Logits]  # a request's frames, as the input takes them, to logits (C,)
TOP = 5


@dataclass(frozen=True)
class QuantisationCost:
    """The quantised network beside the float32 one, on so many clips; logits are those of whole clips.

    `accuracies` are the float32 network's and the quantised one's, where the clips have labels.
    """

    quantised_with: int  # clips
    frames: int  # of those
    apart: bool  # whether what follows was measured on others
    clips: int
    same_best: int  # clips whose best gloss is the same
    top5_in_common: float  # glosses that are among both best five, the mean over clips
    max_difference: float  # logits
    spread: float  # logits, from the least to the greatest of a clip, the mean over clips
    accuracies: tuple[Accuracy, Accuracy] | None


def measure_cost(
    exact: Ask, quantised: Ask, network: ServedNetwork, calibration: Calibration, labels: Sequence[str]
) -> QuantisationCost:
    """Ask both networks about the clips held out; those that cannot be read are passed over.

    Raises:
        VideoError: not one of them can be read.
    """
    pairs: list[tuple[Logits, Logits]] = []
    labelled: list[LabelledClip] = []
    for clip in calibration.held_out:
        try:
            windows = [network.tensor(window) for window in windows_of(clip, network.preset)]
        except VideoError:
            continue
        logits = [pool([ask(window) for window in windows], network.preset) for ask in (exact, quantised)]
        pairs.append((logits[0], logits[1]))
        labelled += [clip] if isinstance(clip, LabelledClip) else []
    if not pairs:
        raise VideoError(f"not one of {len(calibration.held_out)} clips in {calibration.folder} can be read")
    return QuantisationCost(
        quantised_with=len(calibration.clips),
        frames=sum(len(clip) for clip in calibration.clips),
        apart=calibration.apart,
        clips=len(pairs),
        same_best=sum(bool(one.argmax() == other.argmax()) for one, other in pairs),
        top5_in_common=statistics.mean(len(best(one) & best(other)) for one, other in pairs),
        max_difference=max(float(np.abs(one - other).max()) for one, other in pairs),
        spread=statistics.mean(float(np.ptp(one)) for one, _ in pairs),
        accuracies=accuracies_of(pairs, labelled, network, labels) if labelled else None,
    )


def best(logits: Logits) -> set[int]:
    """The best five classes."""
    return set(np.argsort(-logits, kind="stable")[:TOP].tolist())


def accuracies_of(
    pairs: Sequence[tuple[Logits, Logits]],
    clips: Sequence[LabelledClip],
    network: ServedNetwork,
    labels: Sequence[str],
) -> tuple[Accuracy, Accuracy]:
    """The accuracy of both, by the measures of `asl-triton evaluate`."""
    classes = Classes.of(labels)

    def accuracy(answers: Sequence[Logits]) -> Accuracy:
        return evaluate(
            [answered(clip, logits, labels, network) for clip, logits in zip(clips, answers, strict=True)], classes
        ).per_instance

    return accuracy([one for one, _ in pairs]), accuracy([other for _, other in pairs])


def answered(clip: LabelledClip, logits: Logits, labels: Sequence[str], network: ServedNetwork) -> Answer:
    """What was answered to a labelled clip."""
    ranked = rank(logits, labels, network.preset, Ranking(top_k=len(labels)))
    order = [prediction.class_id for prediction in ranked]
    place = order.index(clip.class_id) + 1
    return Answer(clip.name, clip.class_id, place, tuple(order[:BEST_KEPT]), ranked[0].confidence)
