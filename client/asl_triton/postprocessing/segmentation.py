"""From confidences over time to segments, the stretches in which a gloss is signed. Nothing here asks a server."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from asl_triton.errors import AslTritonError
from asl_triton.results import Curve, Segment, Step


@dataclass(frozen=True)
class Segmentation:
    """The rules by which confidences become segments.

    A run of a gloss begins and ends where its confidence passes `release` times `min_confidence`, and becomes a segment
    if it reaches `min_confidence` in between: a threshold with hysteresis. The segment begins and ends where the
    confidence passes half of its peak, interpolated linearly between two steps. Segments shorter than `min_length_s`
    are dropped. Of two that overlap by more than `overlap` of the shorter, the less confident is dropped (non-maximum
    suppression); a smaller overlap is cut off the one found later. Runs longer than `max_length_s` are split.

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
                f"min_confidence is {self.min_confidence}: for a timeline it is above 0, and 1 at most"
            )
        if not 0 < self.release <= 1:
            raise AslTritonError(f"release is {self.release}: it is a share of min_confidence, above 0, and 1 at most")
        if not 0 <= self.overlap < 1:
            raise AslTritonError(f"overlap is {self.overlap}: it is a share of a segment, from 0 to below 1")
        if not 0 <= self.min_length_s < self.max_length_s:
            raise AslTritonError(
                f"a segment of {self.min_length_s} s at least and {self.max_length_s} s at most cannot be: "
                "min_length_s is 0 or more, and less than max_length_s"
            )

    def is_conflict(self, segment: Segment, start_s: float, end_s: float) -> bool:
        """Whether a segment shares too much with the time from `start_s` to `end_s` for both to be signs."""
        shared_s = min(segment.end_s, end_s) - max(segment.start_s, start_s)
        return shared_s > self.overlap * min(segment.end_s - segment.start_s, end_s - start_s)


@dataclass
class _Run:
    """A gloss above the release threshold: its confidences at the middles of its steps.

    The step before the run and the one after it are included where there are such steps. `start_s` is the middle of
    the step before the run, or the beginning of its first step.
    """

    class_id: int
    start_s: float
    times_s: list[float]
    confidences: list[float]

    @property
    def border_s(self) -> float:
        """When the rising confidence passes half of the peak. While the run goes on, this can only become later."""
        half = max(self.confidences) / 2
        first = next(n for n, confidence in enumerate(self.confidences) if confidence >= half)
        return self._interpolate(first - 1, half) if first else self.start_s

    def to_segment(self, labels: Sequence[str], end_s: float) -> Segment:
        """The finished run as a segment, which begins and ends where the confidence passes half of its peak."""
        peak = int(np.argmax(self.confidences))
        half = self.confidences[peak] / 2
        last = next(n for n in reversed(range(len(self.confidences))) if self.confidences[n] >= half)
        return Segment(
            gloss=labels[self.class_id],
            class_id=self.class_id,
            start_s=self.border_s,
            end_s=self._interpolate(last, half) if last + 1 < len(self.times_s) else end_s,
            confidence=self.confidences[peak],
            peak_s=self.times_s[peak],
        )

    def _interpolate(self, place: int, level: float) -> float:
        """When the confidence passes `level` between the step at `place` and the next."""
        (before, after), (start_s, end_s) = self.confidences[place : place + 2], self.times_s[place : place + 2]
        return start_s + (level - before) / (after - before) * (end_s - start_s)


class Segmenter:
    """Turns steps, in order, into segments; each is returned as soon as no later step can change it.

    `class_ids` are the glosses to look for, all of `labels` by default. Memory is bounded by the rules' `max_length_s`.
    """

    def __init__(
        self, labels: Sequence[str], rules: Segmentation | None = None, class_ids: Collection[int] | None = None
    ) -> None:
        self.rules = rules or Segmentation()
        self._labels = labels
        self._class_ids = np.array(sorted(range(len(labels)) if class_ids is None else class_ids), np.intp)
        self._release = self.rules.release * self.rules.min_confidence
        self._before: Step | None = None
        self._runs: dict[int, _Run] = {}  # still going on, by class
        self._undecided: list[Segment] = []  # finished, but a run that is going on may be stronger
        self._kept: list[Segment] = []  # returned, and what comes may still overlap them

    def push(self, step: Step) -> list[Segment]:
        """Take the next step; returns the segments that it settles."""
        values = step.confidences[self._class_ids]
        above = values >= self._release
        now = dict(zip(self._class_ids[above].tolist(), values[above].tolist(), strict=True))
        for class_id, run in list(self._runs.items()):
            if class_id not in now:
                run.times_s.append(step.middle_s)
                run.confidences.append(float(step.confidences[class_id]))
                self._end(run, step.middle_s)
            elif step.end_s - run.start_s > self.rules.max_length_s:
                self._end(run, step.start_s)
        for class_id, confidence in now.items():
            run = self._runs.get(class_id) or self._begin(class_id, step)
            run.times_s.append(step.middle_s)
            run.confidences.append(confidence)
        self._before = step
        return self._decide(step.end_s)

    def finish(self) -> list[Segment]:
        """The remaining segments, after the last step was pushed."""
        if self._before is None:
            return []
        for run in list(self._runs.values()):
            self._end(run, self._before.end_s)
        return self._decide(self._before.end_s)

    def _begin(self, class_id: int, step: Step) -> _Run:
        run = self._runs[class_id] = _Run(class_id, step.start_s, [], [])
        if self._before is not None and (low := float(self._before.confidences[class_id])) < self._release:
            run.start_s = self._before.middle_s
            run.times_s.append(run.start_s)
            run.confidences.append(low)
        return run

    def _end(self, run: _Run, end_s: float) -> None:
        del self._runs[run.class_id]
        if max(run.confidences) >= self.rules.min_confidence:
            segment = run.to_segment(self._labels, end_s)
            if segment.end_s - segment.start_s >= self.rules.min_length_s:
                self._undecided.append(segment)

    def _decide(self, now_s: float) -> list[Segment]:
        """Non-maximum suppression of the finished segments; returns those that nothing can change any more."""
        decided, waiting = [], list[Segment]()
        going_on = [(run.border_s, now_s) for run in self._runs.values()]
        for segment in sorted(self._undecided, key=lambda segment: (-segment.confidence, segment.start_s)):
            if any(self.rules.is_conflict(segment, kept.start_s, kept.end_s) for kept in self._kept):
                continue
            others = going_on + [(other.start_s, other.end_s) for other in waiting]
            if any(self.rules.is_conflict(segment, *other) for other in others):
                waiting.append(segment)
            elif (rest := trim_overlaps(segment, self._kept)).end_s - rest.start_s >= self.rules.min_length_s:
                decided.append(rest)
                self._kept.append(rest)
        self._undecided = waiting
        still_s = min([start_s for start_s, _ in going_on] + [segment.start_s for segment in waiting], default=now_s)
        self._kept = [kept for kept in self._kept if kept.end_s > still_s]
        return decided


def trim_overlaps(segment: Segment, others: Sequence[Segment]) -> Segment:
    """The segment without what it shares with others at its ends."""
    start_s, end_s = segment.start_s, segment.end_s
    for other in others:
        if other.start_s <= segment.start_s:
            start_s = max(start_s, other.end_s)
        else:
            end_s = min(end_s, other.start_s)
    return replace(segment, start_s=start_s, end_s=end_s, peak_s=min(max(segment.peak_s, start_s), end_s))


def select_curves(steps: Sequence[Step], labels: Sequence[str], class_ids: Sequence[int]) -> tuple[Curve, ...]:
    """The curves of these glosses, in this order."""
    times_s = np.array([step.middle_s for step in steps])
    return tuple(
        Curve(labels[c], int(c), times_s, np.array([step.confidences[c] for step in steps], np.float32))
        for c in class_ids
    )
