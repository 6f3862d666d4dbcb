"""How good a recogniser is, measured on its answers to labelled clips: pure functions over them."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from asl_triton.evaluation.scoring import Answer, Classes

BINS = 15
WORST_SHOWN = 12
COLUMNS_SHOWN = 16


@dataclass(frozen=True)
class Accuracy:
    """Shares of clips, or means of classes' shares, whose right gloss is among the best 1, 5 and 10."""

    top1: float
    top5: float
    top10: float


@dataclass(frozen=True)
class ClassAccuracy:
    """The accuracy over one class's clips."""

    gloss: str
    clips: int
    top1: float
    top5: float
    top10: float


@dataclass(frozen=True)
class Confusion:
    """So many of the clips of `truth` (of `of` in all) were taken for `taken_for`."""

    truth: str
    taken_for: str
    clips: int
    of: int


@dataclass(frozen=True)
class Bin:
    """The clips whose confidence is above `low` and up to `high`: how sure, how right; None where it is empty."""

    low: float
    high: float
    clips: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class ConfusionMatrix:
    """Clips of the worst classes (rows) by what they were taken for (columns); the last column is any other gloss."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    clips: tuple[tuple[int, ...], ...]  # (rows, columns + 1)


@dataclass(frozen=True)
class Evaluation:
    """The measures of a recogniser on one set of clips. Classes without clips are left out of all of them.

    `per_instance` counts each clip once, `per_class` each class once. `top1_interval` holds the recogniser's top-1
    accuracy per instance with 95 % confidence.
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


def evaluate(answers: Sequence[Answer], classes: Classes) -> Evaluation:
    """All measures of one or more answers."""
    by_class = class_accuracies(answers, classes)
    bins = reliability(answers)
    right = sum(answer.rank == 1 for answer in answers)
    return Evaluation(
        clips=len(answers),
        classes=len(by_class),
        vocabulary=len(classes.names),
        per_instance=Accuracy(*(top(answers, k) for k in (1, 5, 10))),
        per_class=Accuracy(
            mean([c.top1 for c in by_class]), mean([c.top5 for c in by_class]), mean([c.top10 for c in by_class])
        ),
        top1_interval=wilson_interval(right, len(answers)),
        calibration_error=calibration_error(bins),
        bins=bins,
        confused=confusions(answers, classes),
        by_class=by_class,
        confusion_matrix=confusion_matrix(answers, classes, [c.gloss for c in by_class if c.top1 < 1][:WORST_SHOWN]),
    )


def mean(values: Sequence[float]) -> float:
    """The mean of one or more values."""
    return math.fsum(values) / len(values)


def top(answers: Sequence[Answer], k: int) -> float:
    """The share of answers whose right class ranks among the best k."""
    return sum(answer.rank <= k for answer in answers) / len(answers)


def class_accuracies(answers: Sequence[Answer], classes: Classes) -> tuple[ClassAccuracy, ...]:
    """The accuracy of each class that has clips: the lowest top-1 first, of equals the one with more clips."""
    of_class: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        of_class[answer.truth].append(answer)
    accuracies = [
        ClassAccuracy(classes.names[c], len(own), top(own, 1), top(own, 5), top(own, 10)) for c, own in of_class.items()
    ]
    return tuple(sorted(accuracies, key=lambda a: (a.top1, -a.clips, a.top5, a.gloss)))


def confusions(answers: Sequence[Answer], classes: Classes) -> tuple[Confusion, ...]:
    """Each pair of a class and another that its clips were taken for, the most frequent first."""
    of = Counter(answer.truth for answer in answers)
    pairs = Counter((answer.truth, answer.best[0]) for answer in answers if answer.rank > 1)
    found = (Confusion(classes.names[t], classes.names[p], clips, of[t]) for (t, p), clips in pairs.items())
    return tuple(sorted(found, key=lambda c: (-c.clips, -c.clips / c.of, c.truth, c.taken_for)))


def confusion_matrix(answers: Sequence[Answer], classes: Classes, rows: Sequence[str]) -> ConfusionMatrix:
    """What the clips of some classes were taken for: those classes as columns, then the most frequent others."""
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


def reliability(answers: Sequence[Answer]) -> tuple[Bin, ...]:
    """Answers in 15 bins of equal width by their confidence, bin m being ((m - 1) / 15, m / 15], as Guo et al. 2017
    ("On Calibration of Modern Neural Networks") draw a reliability diagram; the first one holds 0 too."""
    inside: list[list[Answer]] = [[] for _ in range(BINS)]
    for answer in answers:
        inside[min(max(math.ceil(answer.confidence * BINS) - 1, 0), BINS - 1)].append(answer)
    return tuple(
        Bin(
            low=m / BINS,
            high=(m + 1) / BINS,
            clips=len(own),
            confidence=mean([answer.confidence for answer in own]) if own else None,
            accuracy=top(own, 1) if own else None,
        )
        for m, own in enumerate(inside)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error, Guo et al. 2017, equation 3: the mean over clips of |accuracy - confidence| of the
    bin that each is in; 0 is perfect."""
    clips = sum(own.clips for own in bins)
    gaps = (
        own.clips * abs(own.accuracy - own.confidence)
        for own in bins
        if own.accuracy is not None and own.confidence is not None
    )
    return math.fsum(gaps) / clips


def wilson_interval(right: int, clips: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share, 95 % with z = 1.96: it stays in [0, 1], and is fair to few clips."""
    share = right / clips
    centre = (share + z * z / (2 * clips)) / (1 + z * z / clips)
    half = z / (1 + z * z / clips) * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips))
    return max(centre - half, 0.0), min(centre + half, 1.0)
