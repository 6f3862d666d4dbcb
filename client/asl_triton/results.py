"""The results of asl-triton: predictions, recognitions, timelines and failures."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asl_triton.errors import AslTritonError

Logits = npt.NDArray[np.float32]


Times = npt.NDArray[np.float64]

MIN_BOX_SIDE = 1 / 32  # of the frame's side: a smaller signer cannot be recognized


@dataclass(frozen=True)
class SignerBox:
    """Where the signer is in the frame: left, top, right and bottom, as fractions of its width and height.

    What lies outside the frame is cut off; 0, 0, 1, 1 asks for whole frames. `source` says who found the box, such as
    "caller" or "dataset", and `confidence`, 0 to 1, how sure that is.

    Raises:
        AslTritonError: the values are not fractions, not in this order, or the box is too small.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    source: str = "caller"
    confidence: float = 1.0

    def __post_init__(self) -> None:
        values = (self.x0, self.y0, self.x1, self.y1)
        shown = ", ".join(f"{value:g}" for value in values)
        if not all(math.isfinite(value) and -1 <= value <= 2 for value in values):
            raise AslTritonError(
                f"the signer's box {shown} is not in fractions of the frame: give left, top, right and bottom from 0 "
                "to 1, such as 0.25,0.05,0.75,1"
            )
        for name, value in zip(("x0", "y0", "x1", "y1"), values, strict=True):
            object.__setattr__(self, name, min(max(float(value), 0.0), 1.0))
        if min(self.x1 - self.x0, self.y1 - self.y0) < MIN_BOX_SIDE:
            raise AslTritonError(
                f"the signer's box {shown} is empty or nearly so: give left, top, right and bottom, in this order, "
                "from 0 to 1"
            )

    @classmethod
    def from_pixels(cls, box: tuple[float, ...], width: int, height: int, source: str = "caller") -> "SignerBox":
        """Make a box from left, top, right and bottom in pixels of a frame of this size."""
        x0, y0, x1, y1 = box
        return cls(x0 / width, y0 / height, x1 / width, y1 / height, source)

    @classmethod
    def parse(cls, text: str) -> "SignerBox":
        """Parse `x0,y0,x1,y1`."""
        try:
            x0, y0, x1, y1 = (float(value) for value in text.split(","))
        except ValueError as exc:
            raise AslTritonError(
                f"{text!r} is not a signer's box: give x0,y0,x1,y1 as fractions of the frame, such as 0.25,0.05,0.75,1"
            ) from exc
        return cls(x0, y0, x1, y1)

    @property
    def is_whole_frame(self) -> bool:
        """Whether it says to show the whole frame."""
        return (self.x0, self.y0, self.x1, self.y1) == (0.0, 0.0, 1.0, 1.0)


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
    # Whether no gloss reaches the caller's threshold, or else the model's own. None if there is no threshold.
    unsure: bool | None
    num_frames: int  # decoded
    duration_s: float
    num_windows: int
    decode_s: float  # reading, resizing and cropping
    wait_s: float  # for the server's answers, not counting decoding
    warnings: tuple[str, ...] = ()
    lost_frames: int = 0  # frames that could not be decoded
    signer: SignerBox | None = None  # the box that the crops were cut from; None for whole frames

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

    `start_s` to `end_s` is the middle half of the frames that the step covers. So steps are contiguous, from half a
    step after the start of a shot to about half a step before its end.
    """

    start_s: float
    end_s: float
    confidences: npt.NDArray[np.float32]

    @property
    def middle_s(self) -> float:
        """Halfway between `start_s` and `end_s`."""
        return (self.start_s + self.end_s) / 2


@dataclass(frozen=True)
class Segment:
    """A stretch of a video in which one gloss is signed. `confidence` is its highest, reached at `peak_s`."""

    gloss: str
    class_id: int
    start_s: float
    end_s: float
    confidence: float
    peak_s: float


@dataclass(frozen=True)
class ShotBox:
    """The box that a film's crops were cut from, from `start_s` until the next `ShotBox`; None for whole frames."""

    start_s: float
    box: SignerBox | None


@dataclass(frozen=True)
class Timeline:
    """What was recognized in one long video: segments that do not overlap, ordered by start time."""

    video: str
    model: str
    segments: tuple[Segment, ...]
    num_frames: int  # decoded
    duration_s: float
    num_windows: int
    decode_s: float  # reading, resizing and cropping
    wait_s: float  # for the server's answers, not counting decoding
    warnings: tuple[str, ...] = ()
    lost_frames: int = 0  # frames that could not be decoded
    signers: tuple[ShotBox, ...] = ()  # one per shot, in order; empty if all frames were used whole

    def find_signer(self, time_s: float) -> SignerBox | None:
        """Return the box at a time, or None if whole frames were used there."""
        boxes = [shot.box for shot in self.signers if shot.start_s <= time_s]
        return boxes[-1] if boxes else None


@dataclass(frozen=True)
class Curve:
    """One gloss's confidence over time: `confidences` (S,) at `times_s` (S,), the middles of the steps."""

    gloss: str
    class_id: int
    times_s: Times
    confidences: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Failure:
    """A clip that was not recognized, and why. `rejected` means that the server was full; the clip can be retried."""

    video: str
    error: str
    rejected: bool = False


Outcome = Recognition | Failure


AnyOutcome = Recognition | Timeline | Failure


def to_json_values(outcome: AnyOutcome) -> dict[str, Any]:
    """Return an outcome as JSON values, as written to result files.

    `lost_frames`, `signer` and `signers` are included only if frames were lost or a box was used, because files of
    earlier versions do not have them.
    """
    values = asdict(outcome)
    if not values.get("lost_frames"):
        values.pop("lost_frames", None)
    values.pop("signer", None)
    values.pop("signers", None)
    if isinstance(outcome, Recognition) and outcome.signer is not None:
        values["signer"] = box_to_json(outcome.signer)
    if isinstance(outcome, Timeline) and outcome.signers:
        values["signers"] = [
            {"start_s": shot.start_s, "signer": shot.box and box_to_json(shot.box)} for shot in outcome.signers
        ]
    return values


def box_to_json(box: SignerBox) -> dict[str, Any]:
    """Return a box as JSON values, as written to result files."""
    return {"box": [box.x0, box.y0, box.x1, box.y1], "source": box.source, "confidence": box.confidence}
