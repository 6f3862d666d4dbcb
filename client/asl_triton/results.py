"""What the project answers: predictions, recognitions, timelines, failures."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """One gloss and how sure the model is of it; rank 1 is the best."""

    rank: int
    gloss: str
    class_id: int
    confidence: float
    logit: float


@dataclass(frozen=True)
class Recognition:
    """What was recognized in one clip, best gloss first."""

    video: str
    model: str
    predictions: tuple[Prediction, ...]
    unsure: bool  # no gloss reaches the confidence asked for
    num_frames: int  # decoded
    duration_s: float
    num_windows: int
    decode_s: float  # reading, resizing and cropping
    wait_s: float  # for the server's answers, beside the decoding
    warnings: tuple[str, ...] = ()
    lost_frames: int = 0  # that could not be decoded

    @property
    def gloss(self) -> str:
        """The best gloss."""
        return self.predictions[0].gloss

    @property
    def confidence(self) -> float:
        """The best gloss's confidence."""
        return self.predictions[0].confidence


@dataclass(frozen=True)
class Step:
    """One step, stitched over windows: `confidences` (C,) float32 are the preset's score of its logits.

    `start_s` to `end_s` is the middle half of the frames that it covers: steps follow one another, from half a step
    after the beginning of a shot to about half a step before its end.
    """

    start_s: float
    end_s: float
    confidences: npt.NDArray[np.float32]

    @property
    def middle_s(self) -> float:
        """When what it covers is half over."""
        return (self.start_s + self.end_s) / 2


@dataclass(frozen=True)
class Segment:
    """A stretch of a video in which one gloss is signed; `confidence` is the highest in it, at `peak_s`."""

    gloss: str
    class_id: int
    start_s: float
    end_s: float
    confidence: float
    peak_s: float


@dataclass(frozen=True)
class Timeline:
    """What was recognized in one long video: segments in the order of their beginnings, none of which overlap."""

    video: str
    model: str
    segments: tuple[Segment, ...]
    num_frames: int  # decoded
    duration_s: float
    num_windows: int
    decode_s: float  # reading, resizing and cropping
    wait_s: float  # for the server's answers, beside the decoding
    warnings: tuple[str, ...] = ()
    lost_frames: int = 0  # that could not be decoded


@dataclass(frozen=True)
class Curve:
    """One gloss's confidence over time: `confidences` (S,) at `times_s` (S,), the middles of the steps."""

    gloss: str
    class_id: int
    times_s: Times
    confidences: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Failure:
    """A clip that was not recognized, and why. `rejected`: the server had no room, so that it may be asked again."""

    video: str
    error: str
    rejected: bool = False


Outcome = Recognition | Failure


AnyOutcome = Recognition | Timeline | Failure
