"""Turns confidences over time into segments, the stretches in which a gloss is signed. Needs no server."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from asl_triton.errors import AslTritonError
from asl_triton.results import Curve, Segment, Step


@dataclass(frozen=True)
class Segmentation:
    """The rules that turn confidences into segments.

    A run of a gloss begins and ends where its confidence passes `release` times `min_confidence`, and becomes a segment
    if it reaches `min_confidence` in between: a threshold with hysteresis. The segment begins and ends where the
    confidence passes half of its peak, interpolated linearly between two steps. Segments shorter than `min_length_s`
    are dropped. Of two that overlap by more than `overlap` of the shorter, the less confident is dropped (non-maximum
    suppression); a smaller overlap is cut from the one found later. Runs longer than `max_length_s` are split.

    Raises:
        AslTritonError: a value is out of range.
    """

    min_confidence: float = 0.5
    release: float = 0.5  # of `min_confidence`
    min_length_s: float = 0.2
    overlap: float = 0.3
    max_length_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.min_confidence <= 1:
            raise AslTritonError(
                f"min_confidence is {self.min_confidence}: for a timeline it must be above 0 and at most 1"
            )
        if not 0 < self.release <= 1:
            raise AslTritonError(
                f"release is {self.release}: as a share of min_confidence, it must be above 0 and at most 1"
            )
        if not 0 <= self.overlap < 1:
            raise AslTritonError(
                f"overlap is {self.overlap}: as a share of a segment, it must be 0 or more, and below 1"
            )
        if not 0 <= self.min_length_s < self.max_length_s:
            raise AslTritonError(
                f"min_length_s is {self.min_length_s} and max_length_s is {self.max_length_s}: the minimum must be at "
                "least 0 and less than the maximum"
            )

    def has_conflict(self, start_s: float, end_s: float, others: Iterable[tuple[float, float]]) -> bool:
        """Return whether a segment overlaps any other one, each (start_s, end_s), too much for both to be signs."""
        return any(
            min(end_s, other_end_s) - max(start_s, other_start_s)
            > self.overlap * min(end_s - start_s, other_end_s - other_start_s)
            for other_start_s, other_end_s in others
        )


@dataclass
class Run:
    """Consecutive steps in which a gloss is above the release threshold.

    The steps span `start_s` to `end_s`. `times_s` are their middles and `confidences` their confidences, including the
    steps just before and after the run if there are any.
    """

    class_id: int
    start_s: float
    end_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)

    @property
    def border_s(self) -> float:
        """When the rising confidence passes half of its peak. While the run continues, this can only move later."""
        half = max(self.confidences) / 2
        first = next(n for n, confidence in enumerate(self.confidences) if confidence >= half)
        return self._interpolate(first - 1, half) if first else min(self.start_s, self.times_s[0])

    def to_segment(self, labels: Sequence[str]) -> Segment:
        """Turn the finished run into a segment that begins and ends where the confidence passes half of its peak."""
        peak = int(np.argmax(self.confidences))
        half = self.confidences[peak] / 2
        last = next(n for n in reversed(range(len(self.confidences))) if self.confidences[n] >= half)
        return Segment(
            gloss=labels[self.class_id],
            class_id=self.class_id,
            start_s=self.border_s,
            end_s=self._interpolate(last, half) if last + 1 < len(self.times_s) else max(self.end_s, self.times_s[-1]),
            confidence=self.confidences[peak],
            peak_s=self.times_s[peak],
        )

    def _interpolate(self, place: int, level: float) -> float:
        """Return when the confidence passes `level` between the step at `place` and the next."""
        (before, after), (start_s, end_s) = self.confidences[place : place + 2], self.times_s[place : place + 2]
        return start_s + (level - before) / (after - before) * (end_s - start_s)


class Hysteresis:
    """Finds the runs of glosses in steps, in order, by the thresholds of `Segmentation`.

    Memory is bounded by the rules' `max_length_s`.
    """

    def __init__(self, rules: Segmentation, class_ids: Collection[int]) -> None:
        self.going_on: dict[int, Run] = {}  # by class
        self._rules = rules
        self._class_ids = np.array(sorted(class_ids), np.intp)
        self._before: Step | None = None

    def push(self, step: Step) -> list[Run]:
        """Take the next step, and return the runs that it ends."""
        release = self._rules.release * self._rules.min_confidence
        values = step.confidences[self._class_ids]
        above = values >= release
        now = dict(zip(self._class_ids[above].tolist(), values[above].tolist(), strict=True))
        ended = []
        for class_id, run in list(self.going_on.items()):
            if class_id not in now:
                run.times_s.append(step.middle_s)
                run.confidences.append(float(step.confidences[class_id]))
                ended.append(self.going_on.pop(class_id))
            elif step.end_s - min(run.start_s, run.times_s[0]) > self._rules.max_length_s:
                run.end_s = step.start_s
                ended.append(self.going_on.pop(class_id))
        for class_id, confidence in now.items():
            if class_id not in self.going_on:
                begun = self.going_on[class_id] = Run(class_id, step.start_s)
                if self._before is not None and (low := float(self._before.confidences[class_id])) < release:
                    begun.times_s.append(self._before.middle_s)
                    begun.confidences.append(low)
            run = self.going_on[class_id]
            run.end_s = step.end_s
            run.times_s.append(step.middle_s)
            run.confidences.append(confidence)
        self._before = step
        return [run for run in ended if max(run.confidences) >= self._rules.min_confidence]

    def finish(self) -> list[Run]:
        """Return the remaining runs, after the last step was pushed."""
        left, self.going_on = self.going_on, {}
        return [run for run in left.values() if max(run.confidences) >= self._rules.min_confidence]


class Segmenter:
    """Turns steps, in order, into segments; each is returned as soon as no later step can change it.

    `class_ids` are the glosses to look for, all of `labels` by default. Memory is bounded by the rules' `max_length_s`.
    """

    def __init__(
        self, labels: Sequence[str], rules: Segmentation | None = None, class_ids: Collection[int] | None = None
    ) -> None:
        self.rules = rules or Segmentation()
        self._labels = labels
        self._hysteresis = Hysteresis(self.rules, range(len(labels)) if class_ids is None else class_ids)
        self._undecided: list[Segment] = []  # finished, but a run in progress may still be stronger
        self._kept: list[Segment] = []  # returned, but later segments may still overlap them

    def push(self, step: Step) -> list[Segment]:
        """Take the next step, and return the segments that it settles."""
        return self._decide(self._hysteresis.push(step), step.end_s)

    def finish(self) -> list[Segment]:
        """Return the remaining segments, after the last step was pushed."""
        return self._decide(self._hysteresis.finish(), math.inf)

    def _decide(self, ended: Sequence[Run], now_s: float) -> list[Segment]:
        """Apply non-maximum suppression to the finished segments, and return those that can no longer change."""
        segments = self._undecided + [run.to_segment(self._labels) for run in ended]
        decided, waiting = [], list[Segment]()
        going_on = [(run.border_s, now_s) for run in self._hysteresis.going_on.values()]
        for segment in sorted(segments, key=lambda segment: (-segment.confidence, segment.start_s)):
            start_s, end_s = segment.start_s, segment.end_s
            if end_s - start_s < self.rules.min_length_s:
                continue
            if self.rules.has_conflict(start_s, end_s, [(kept.start_s, kept.end_s) for kept in self._kept]):
                continue
            if self.rules.has_conflict(start_s, end_s, going_on + [(one.start_s, one.end_s) for one in waiting]):
                waiting.append(segment)
            elif (rest := trim_overlaps(segment, self._kept)).end_s - rest.start_s >= self.rules.min_length_s:
                decided.append(rest)
                self._kept.append(rest)
        self._undecided = waiting
        still_s = min([start_s for start_s, _ in going_on] + [segment.start_s for segment in waiting], default=now_s)
        self._kept = [kept for kept in self._kept if kept.end_s > still_s]
        return decided


def trim_overlaps(segment: Segment, others: Sequence[Segment]) -> Segment:
    """Return the segment without the parts at its ends that overlap others."""
    start_s, end_s = segment.start_s, segment.end_s
    for other in others:
        if other.start_s <= segment.start_s:
            start_s = max(start_s, other.end_s)
        else:
            end_s = min(end_s, other.start_s)
    return replace(segment, start_s=start_s, end_s=end_s, peak_s=min(max(segment.peak_s, start_s), end_s))


def select_curves(steps: Sequence[Step], labels: Sequence[str], class_ids: Sequence[int]) -> tuple[Curve, ...]:
    """Return the curves of these glosses, in this order."""
    times_s = np.array([step.middle_s for step in steps])
    return tuple(
        Curve(labels[c], int(c), times_s, np.array([step.confidences[c] for step in steps], np.float32))
        for c in class_ids
    )
