"""Pure functions that compute accuracy, calibration and confusions from a model's answers to labeled clips."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from asl_triton.evaluation.scoring import ClassMapping, ScoredClip

BINS = 15
WORST_SHOWN = 12
COLUMNS_SHOWN = 16
TOPS = (1, 5, 10, 20)
RESAMPLES = 2_000  # of the bootstrap
WRONG_COSTS = 9  # right answers: an answer is worth giving if it is right in more than 9 of 10 cases
FEW_CLIPS = 10  # below this, an accuracy is shown with its interval


@dataclass(frozen=True)
class Accuracy:
    """Fractions of clips, or means over classes, whose right gloss is among the best 1, 5, 10 and 20.

    With one right gloss per clip, these are also the recall at 1, 5, 10 and 20.
    """

    top1: float
    top5: float
    top10: float
    top20: float


@dataclass(frozen=True)
class Retrieval:
    """Means over clips that use the whole ranking, as ASL Citizen reports them (Desai et al. 2023, section 5).

    `dcg` is the discounted cumulative gain, 1 / log2(rank + 1); `mrr` the mean reciprocal rank, 1 / rank.
    """

    dcg: float
    mrr: float


@dataclass(frozen=True)
class SignerAccuracy:
    """The figures for one signer's clips."""

    signer: str
    clips: int
    top1: float
    top5: float
    top10: float
    top20: float
    dcg: float
    mrr: float


@dataclass(frozen=True)
class SignerSpread:
    """How much top-1 differs between signers. `deviation` is the standard deviation."""

    signers: int
    lowest: float
    median: float
    highest: float
    deviation: float


@dataclass(frozen=True)
class SignerIntervals:
    """95 % confidence intervals of the figures per instance, from a bootstrap over signers (Efron 1979).

    The clips of one signer are alike, so an interval based on clips would be too narrow for new signers.
    """

    top1: tuple[float, float]
    top5: tuple[float, float]
    top10: tuple[float, float]
    top20: tuple[float, float]
    dcg: tuple[float, float]
    mrr: tuple[float, float]


@dataclass(frozen=True)
class ClassAccuracy:
    """The accuracy on one class's clips."""

    gloss: str
    clips: int
    top1: float
    top5: float
    top10: float
    top20: float


@dataclass(frozen=True)
class Confusion:
    """`clips` of the `of` clips of `truth` were taken for `taken_for`."""

    truth: str
    taken_for: str
    clips: int
    of: int


@dataclass(frozen=True)
class Bin:
    """The clips whose confidence is above `low` and up to `high`. The means are None for an empty bin."""

    low: float
    high: float
    clips: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Threshold:
    """A confidence below which answers should count as unsure, in whole percents.

    `reached` is the fraction of clips whose answer reaches it, `accuracy` the fraction of those answers that are right.
    """

    min_confidence: float
    reached: float
    accuracy: float


@dataclass(frozen=True)
class ConfusionMatrix:
    """Clips of the worst classes (rows) by what they were taken for (columns). The last column is for other glosses."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    clips: tuple[tuple[int, ...], ...]  # (rows, columns + 1)


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model on one set of clips. Classes without clips are left out.

    `per_instance` counts each clip once, `per_class` each class once. `top1_interval` is the 95 % confidence interval
    of top-1 accuracy per instance. Figures by signer are empty or None if the data set does not name its signers.
    `signer_intervals` needs at least two signers.
    """

    clips: int
    classes: int  # with clips
    vocabulary: int  # all that could be answered
    per_instance: Accuracy
    per_class: Accuracy
    top1_interval: tuple[float, float]
    calibration_error: float
    bins: tuple[Bin, ...]
    confused: tuple[Confusion, ...]  # the most frequent first
    by_class: tuple[ClassAccuracy, ...]  # the worst first
    confusion_matrix: ConfusionMatrix
    retrieval: Retrieval
    by_signer: tuple[SignerAccuracy, ...]  # the lowest top-1 first
    signer_spread: SignerSpread | None
    signer_intervals: SignerIntervals | None
    threshold: Threshold | None  # recommended for the model


def evaluate(answers: Sequence[ScoredClip], classes: ClassMapping) -> Evaluation:
    """Compute all figures from one or more answers."""
    by_class = compute_class_accuracies(answers, classes)
    by_signer = compute_signer_accuracies(answers)
    bins = compute_reliability(answers)
    right = sum(answer.rank == 1 for answer in answers)
    return Evaluation(
        clips=len(answers),
        classes=len(by_class),
        vocabulary=len(classes.names),
        per_instance=Accuracy(*(compute_accuracy(answers, k) for k in TOPS)),
        per_class=Accuracy(
            compute_mean([c.top1 for c in by_class]),
            compute_mean([c.top5 for c in by_class]),
            compute_mean([c.top10 for c in by_class]),
            compute_mean([c.top20 for c in by_class]),
        ),
        top1_interval=compute_wilson_interval(right, len(answers)),
        calibration_error=compute_calibration_error(bins),
        bins=bins,
        confused=find_confusions(answers, classes),
        by_class=by_class,
        confusion_matrix=build_confusion_matrix(
            answers, classes, [c.gloss for c in by_class if c.top1 < 1][:WORST_SHOWN]
        ),
        retrieval=Retrieval(*compute_values(answers)[:, len(TOPS) :].mean(axis=0).tolist()),
        by_signer=by_signer,
        signer_spread=compute_signer_spread(by_signer),
        signer_intervals=compute_signer_intervals(answers),
        threshold=choose_threshold(answers),
    )


def compute_mean(values: Sequence[float]) -> float:
    """Return the mean of one or more values."""
    return math.fsum(values) / len(values)


def compute_accuracy(answers: Sequence[ScoredClip], k: int) -> float:
    """Return the fraction of answers whose right class is among the best k."""
    return sum(answer.rank <= k for answer in answers) / len(answers)


def compute_class_accuracies(answers: Sequence[ScoredClip], classes: ClassMapping) -> tuple[ClassAccuracy, ...]:
    """Return the accuracy of each class that has clips, sorted by lowest top-1 first, then by most clips."""
    of_class: dict[int, list[ScoredClip]] = defaultdict(list)
    for answer in answers:
        of_class[answer.truth].append(answer)
    accuracies = [
        ClassAccuracy(classes.names[c], len(own), *(compute_accuracy(own, k) for k in TOPS))
        for c, own in of_class.items()
    ]
    return tuple(sorted(accuracies, key=lambda a: (a.top1, -a.clips, a.top5, a.gloss)))


def compute_values(answers: Sequence[ScoredClip]) -> npt.NDArray[np.float64]:
    """Return each answer's part of the means, (answers, 6): a hit at each k of `TOPS`, DCG and reciprocal rank."""
    ranks = np.array([answer.rank for answer in answers], np.float64)
    hits = [ranks <= k for k in TOPS]
    values: npt.NDArray[np.float64] = np.stack([*hits, 1 / np.log2(ranks + 1), 1 / ranks], axis=1).astype(np.float64)
    return values


def group_by_signer(answers: Sequence[ScoredClip]) -> dict[str, list[ScoredClip]]:
    """Group the answers by signer, leaving out those without one."""
    of_signer: dict[str, list[ScoredClip]] = defaultdict(list)
    for answer in answers:
        if answer.signer_id is not None:
            of_signer[answer.signer_id].append(answer)
    return of_signer


def compute_signer_accuracies(answers: Sequence[ScoredClip]) -> tuple[SignerAccuracy, ...]:
    """Return the figures of each signer, lowest top-1 first."""
    measured = [
        SignerAccuracy(signer, len(own), *compute_values(own).mean(axis=0).tolist())
        for signer, own in group_by_signer(answers).items()
    ]
    return tuple(sorted(measured, key=lambda m: (m.top1, -m.clips, m.signer)))


def compute_signer_spread(by_signer: Sequence[SignerAccuracy]) -> SignerSpread | None:
    """Compute how much top-1 differs between signers. Returns None without signers."""
    if not by_signer:
        return None
    shares = [signer.top1 for signer in by_signer]
    return SignerSpread(len(shares), min(shares), statistics.median(shares), max(shares), statistics.pstdev(shares))


def compute_signer_intervals(answers: Sequence[ScoredClip], seed: int = 0) -> SignerIntervals | None:
    """Compute a percentile bootstrap, which draws as many signers with replacement, each with all of their clips."""
    groups = list(group_by_signer(answers).values())
    if len(groups) < 2:
        return None
    sums = np.stack([compute_values(own).sum(axis=0) for own in groups])  # (signers, measures)
    counts = np.array([len(own) for own in groups], np.float64)
    drawn = np.random.default_rng(seed).multinomial(
        len(groups), np.full(len(groups), 1 / len(groups)), RESAMPLES
    )  # (resamples, signers): how often each is drawn
    means = (drawn @ sums) / (drawn @ counts)[:, None]
    low, high = np.percentile(means, [2.5, 97.5], axis=0).tolist()
    return SignerIntervals(*zip(low, high, strict=True))


def find_confusions(answers: Sequence[ScoredClip], classes: ClassMapping) -> tuple[Confusion, ...]:
    """Return the pairs of a class and another that its clips were taken for, most frequent first."""
    of = Counter(answer.truth for answer in answers)
    pairs = Counter((answer.truth, answer.best[0]) for answer in answers if answer.rank > 1)
    found = (Confusion(classes.names[t], classes.names[p], clips, of[t]) for (t, p), clips in pairs.items())
    return tuple(sorted(found, key=lambda c: (-c.clips, -c.clips / c.of, c.truth, c.taken_for)))


def build_confusion_matrix(
    answers: Sequence[ScoredClip], classes: ClassMapping, rows: Sequence[str]
) -> ConfusionMatrix:
    """Count what clips of the classes `rows` were taken for. The columns are `rows`, then the most frequent others."""
    counts = {row: Counter[str]() for row in rows}
    for answer in answers:
        if (truth := classes.names[answer.truth]) in counts:
            counts[truth][classes.names[answer.best[0]]] += 1
    taken = sum(counts.values(), Counter[str]())
    others = sorted((name for name in taken if name not in counts), key=lambda name: (-taken[name], name))
    columns = (*rows, *islice(others, max(COLUMNS_SHOWN - len(rows), 0)))
    return ConfusionMatrix(
        tuple(rows),
        columns,
        tuple(
            (*(counts[row][c] for c in columns), counts[row].total() - sum(counts[row][c] for c in columns))
            for row in rows
        ),
    )


def compute_reliability(answers: Sequence[ScoredClip]) -> tuple[Bin, ...]:
    """Sort answers into 15 bins of equal width by confidence, for a reliability diagram as in Guo et al. 2017 ("On
    Calibration of Modern Neural Networks"). Bin m is ((m - 1) / 15, m / 15]; the first one includes 0."""
    inside: list[list[ScoredClip]] = [[] for _ in range(BINS)]
    for answer in answers:
        inside[min(max(math.ceil(answer.confidence * BINS) - 1, 0), BINS - 1)].append(answer)
    return tuple(
        Bin(
            low=m / BINS,
            high=(m + 1) / BINS,
            clips=len(own),
            confidence=compute_mean([answer.confidence for answer in own]) if own else None,
            accuracy=compute_accuracy(own, 1) if own else None,
        )
        for m, own in enumerate(inside)
    )


def compute_calibration_error(bins: Sequence[Bin]) -> float:
    """Compute the expected calibration error (Guo et al. 2017, equation 3): the mean over clips of |accuracy -
    confidence| of each one's bin. 0 is perfect."""
    clips = sum(own.clips for own in bins)
    gaps = (
        own.clips * abs(own.accuracy - own.confidence)
        for own in bins
        if own.accuracy is not None and own.confidence is not None
    )
    return math.fsum(gaps) / clips


def choose_threshold(answers: Sequence[ScoredClip]) -> Threshold | None:
    """Choose the threshold below which answers should count as unsure. Returns None if no answer is worth giving.

    At this threshold, right answers outweigh wrong ones the most, with each wrong one counting as nine right ones. This
    is the empirical form of Chow's rule (1970, "On Optimum Recognition Error and Reject Tradeoff"). More than 90 % of
    the answers at or above it are right, and any lower threshold would add answers of which at most 90 % are right.
    Among equally good thresholds, it is the highest.
    """
    confidences = np.array([answer.confidence for answer in answers])
    is_right = np.array([answer.rank == 1 for answer in answers])
    percents = np.arange(101)
    reached = confidences >= percents[:, None] / 100  # (percents, answers)
    gains = (reached & is_right).sum(axis=1) - WRONG_COSTS * (reached & ~is_right).sum(axis=1)
    if gains.max() <= 0:
        return None
    best = int(percents[gains == gains.max()].max())
    return Threshold(best / 100, float(reached[best].mean()), float(is_right[reached[best]].mean()))


def format_accuracy(share: float, clips: int) -> str:
    """Format a fraction of clips in percent, with its 95 % interval if there are fewer than ten clips."""
    if clips >= FEW_CLIPS:
        return f"{share:.1%}"
    low, high = compute_wilson_interval(round(share * clips), clips)
    return f"{share:.1%} (95 % interval {low:.0%} to {high:.0%})"


def compute_wilson_interval(right: int, clips: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute Wilson's score interval (1927), 95 % with z = 1.96. It stays in [0, 1] and suits small samples."""
    share = right / clips
    center = (share + z * z / (2 * clips)) / (1 + z * z / clips)
    half = z / (1 + z * z / clips) * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips))
    return max(center - half, 0.0), min(center + half, 1.0)
