"""Answers about ever newer windows to signs, each told once and soon.

The steps of a window say when a gloss was seen; the same stretch is seen by several windows, so what overlaps what was
told is the same sign. A gloss is told while it is still being signed: at once where it is sure, else when a later
answer still says so, because the beginning of a sign often looks like another.

Measured with the demo checkpoint on 40 signs of rendered signers with pauses between (64 frames, every 8): 39 told, 1
wrong, none twice, the median 0.16 s before the hands go down; the pooled logits of the window by the same rules tell as
many, 0.04 s later. With pauses of a second or less, 34 of 36 against 29: a pooled window holds a gloss for its whole
length. Without the second look 4 are wrong.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asl_triton.errors import AslTritonError
from asl_triton.live.window import LiveWindow, WindowSnapshot
from asl_triton.postprocessing.ranking import Ranking, compute_confidences
from asl_triton.presets import Preset
from asl_triton.results import Logits
from asl_triton.video.windows import POSITION_FRAMES

RELEASE = 0.5  # of `min_confidence`: a gloss goes on above it
SURE = 0.9  # confidence from which one answer is enough
SETTLE_S = 0.3  # between the two answers that say the same of a gloss that is not sure
OVERLAP = 0.3  # of the shorter: of two glosses that share more, the less confident is none
NOW_S = 0.7  # before the window's end: what is signed later than that is being signed now


@dataclass(frozen=True)
class LiveRules:
    """When the server is asked, and when a sign is told. Checked when made: `AslTritonError`.

    `vocabulary` tells only its glosses. Frames count at the preset's rate, 25 a second if it has none.
    """

    window_frames: int | None = None  # of one request; None: as the preset says
    stride_frames: int = POSITION_FRAMES  # from one request to the next
    min_confidence: float = 0.5  # of a sign that is told
    gone_s: float = 0.4  # a gloss that is away for longer, and comes back, is another sign
    repeat_s: float = 4.0  # a gloss that goes on without end is told again after so long
    vocabulary: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.vocabulary is not None:
            object.__setattr__(self, "vocabulary", frozenset(self.vocabulary))  # it is looked through at each answer
        Ranking(vocabulary=self.vocabulary, min_confidence=self.min_confidence)
        if self.min_confidence == 0:
            raise AslTritonError("min_confidence is 0: every pause would be a sign; it goes from above 0 to 1")
        for name in ("window_frames", "stride_frames"):
            frames = getattr(self, name)
            if frames is not None and frames < 1:
                raise AslTritonError(f"{name} is {frames}: it is 1 frame or more")
        if not self.gone_s >= 0 or not self.repeat_s > 0:
            raise AslTritonError(
                f"gone_s is {self.gone_s} and repeat_s {self.repeat_s}: seconds, from 0, and above 0, on"
            )

    def class_ids(self, labels: Sequence[str], preset: Preset) -> npt.NDArray[np.intp]:
        """The classes that may be told by a model of those labels and that preset.

        Raises:
            LabelsError: the vocabulary does not fit the labels. AslTritonError: the window does not fit the preset.
        """
        LiveWindow(preset).size(self.window_frames, self.stride_frames)
        return Ranking(vocabulary=self.vocabulary).class_ids(labels)


@dataclass(frozen=True)
class Detection:
    """A stretch of one window in which a gloss is seen; `confidence` is its highest."""

    class_id: int
    start_s: float
    end_s: float
    confidence: float

    @property
    def middle_s(self) -> float:
        """When it is half over."""
        return (self.start_s + self.end_s) / 2

    def shares(self, other: "Detection") -> bool:
        """Whether the two overlap by so much that they cannot both be."""
        common_s = min(self.end_s, other.end_s) - max(self.start_s, other.start_s)
        return common_s > OVERLAP * min(self.end_s - self.start_s, other.end_s - other.start_s)

    def follows(self, other: "Detection", gone_s: float) -> bool:
        """Whether the two are one sign."""
        apart_s = max(self.start_s, other.start_s) - min(self.end_s, other.end_s)
        return self.class_id == other.class_id and apart_s <= gone_s

    def joined(self, other: "Detection") -> "Detection":
        """One sign of two sightings."""
        start_s, end_s = min(self.start_s, other.start_s), max(self.end_s, other.end_s)
        return Detection(self.class_id, start_s, end_s, max(self.confidence, other.confidence))


@dataclass
class Track:
    """What is known of one sign: `told_s` is where it ended when it was told, None before."""

    seen: Detection
    first_seen_s: float  # the end of the window that saw it first
    told_s: float | None = None


class SignSpotter:
    """The signs of one stream, out of its answers in order; memory is bounded by a window's length.

    `now` is the gloss that is being signed, None where none is; `best` the confidence of it, or of the nearest to it.
    """

    def __init__(self, preset: Preset) -> None:
        self.now: int | None = None
        self.best = 0.0
        self._preset = preset
        self._signs: list[Track] = []
        self._run = 0
        self._end_s = 0.0  # of the newest window

    def add(
        self, clip: WindowSnapshot, step_logits: Logits, rules: LiveRules, class_ids: npt.NDArray[np.intp]
    ) -> list[Detection]:
        """Take the step logits (S, C) of a window; gives the signs to tell. `class_ids` are those that may be told."""
        told = self._out_of_sight(clip)
        self._run, self._end_s = clip.run, clip.time_s(clip.num_shown)
        self._signs = [sign for sign in self._signs if sign.seen.end_s >= clip.start_s - rules.gone_s]
        scores = np.stack([compute_confidences(logits, self._preset) for logits in step_logits])[:, class_ids]
        seen = suppress_non_maxima(find_detections(clip, scores, class_ids, rules.min_confidence))
        told += [sign for sighting in seen for sign in self._looked_at(sighting, rules)]
        self._forget_unseen(seen, rules)
        self._look_at_now(clip, scores, seen)
        return told + (self._untold() if clip.flushed else [])

    def pause(self) -> None:
        """Nothing is known of now."""
        self.now, self.best = None, 0.0

    def _out_of_sight(self, clip: WindowSnapshot) -> list[Detection]:
        """What is to be told because no second look can come: another run begins, or the server was slow."""
        if clip.run == self._run:
            return self._untold(before_s=clip.start_s)
        told = self._untold()
        if clip.start_s < self._end_s:  # the clock went back
            self._signs = []
        return told

    def _untold(self, before_s: float = math.inf) -> list[Detection]:
        """What waits for a second look, and is half over before then."""
        waiting = [sign for sign in self._signs if sign.told_s is None and sign.seen.middle_s < before_s]
        for sign in waiting:
            sign.told_s = sign.seen.end_s
        return [sign.seen for sign in waiting]

    def _looked_at(self, sighting: Detection, rules: LiveRules) -> Iterator[Detection]:
        """Make a sighting part of what is known; gives it if it is to be told."""
        known = next((sign for sign in self._signs if sighting.follows(sign.seen, rules.gone_s)), None)
        if known is None:
            if any(s.told_s is not None and s.seen.confidence >= sighting.confidence and sighting.shares(s.seen)
                   for s in self._signs):  # fmt: skip
                return
            known = Track(sighting, self._end_s)
            self._signs.append(known)
        known.seen = sighting.joined(known.seen)
        if known.told_s is None:
            is_known = known.seen.confidence >= SURE or self._end_s - known.first_seen_s >= SETTLE_S
        else:
            is_known = known.seen.end_s - known.told_s >= rules.repeat_s
        if is_known:
            start_s = known.seen.start_s if known.told_s is None else known.told_s
            known.told_s = known.seen.end_s
            yield Detection(known.seen.class_id, start_s, known.seen.end_s, sighting.confidence)

    def _forget_unseen(self, seen: Sequence[Detection], rules: LiveRules) -> None:
        """A first guess that the second look does not bear out was none."""
        self._signs = [
            sign
            for sign in self._signs
            if sign.told_s is not None or any(sighting.follows(sign.seen, rules.gone_s) for sighting in seen)
        ]

    def _look_at_now(self, clip: WindowSnapshot, scores: npt.NDArray[np.float64], seen: Sequence[Detection]) -> None:
        late = [sighting for sighting in seen if sighting.end_s > self._end_s - NOW_S]
        newest = max(late, key=lambda sighting: sighting.end_s, default=None)
        self.now = newest.class_id if newest else None
        last_step = max(len(scores) - 2, 0)
        self.best = newest.confidence if newest else float(scores[last_step:].max())


def find_detections(
    clip: WindowSnapshot, scores: npt.NDArray[np.float64], class_ids: npt.NDArray[np.intp], min_confidence: float
) -> Iterator[Detection]:
    """The runs of steps, of confidences (S, classes), above the release that reach the threshold somewhere.

    Step s covers the frames from 8 s to 8 s + 15 and stands for those in its middle. Steps that see only repetitions of
    the last frame are left out.
    """
    shown = max(1, sum(s * POSITION_FRAMES + POSITION_FRAMES / 2 < clip.num_shown for s in range(len(scores))))
    for column in np.flatnonzero(scores[:shown].max(axis=0) >= min_confidence):
        held = scores[:shown, column] >= RELEASE * min_confidence
        edges = np.flatnonzero(np.diff(held, prepend=False, append=False))  # (2 a run): its first step, one behind it
        for first, behind in edges.reshape(-1, 2):
            peak = float(scores[first:behind, column].max())
            if peak >= min_confidence:
                start_s = clip.time_s((first + 0.5) * POSITION_FRAMES)
                end_s = clip.time_s((behind + 0.5) * POSITION_FRAMES)
                yield Detection(int(class_ids[column]), start_s, end_s, peak)


def suppress_non_maxima(seen: Iterator[Detection]) -> list[Detection]:
    """The sightings without those that a more confident one leaves no room for."""
    kept: list[Detection] = []
    for sighting in sorted(seen, key=lambda sighting: -sighting.confidence):
        if not any(sighting.shares(other) for other in kept):
            kept.append(sighting)
    return kept
