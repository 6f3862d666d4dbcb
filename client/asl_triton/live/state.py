"""What a live session reports: signs, and its state."""

from dataclasses import dataclass

from asl_triton.results import SignerBox
from asl_triton.signer.guide import Advice


@dataclass(frozen=True)
class LiveEvent:
    """A recognized sign. `start_s` and `end_s` are in the clock of the frames that were fed.

    `lag_s` is the time from when the newest frame of the window was fed until this event.
    """

    gloss: str
    class_id: int
    confidence: float
    start_s: float
    end_s: float  # as far as it was seen at the time; the sign may go on
    lag_s: float


@dataclass(frozen=True)
class LiveState:
    """The state of a live session. Counts are since its start; `events` has the newest 500, oldest first."""

    gloss: str | None = None  # being signed now; None if the hands are down, or if unknown
    confidence: float = 0.0  # of `gloss`, or of the most likely gloss if that is None
    lag_s: float | None = None  # p50 over the last 1,000 answers; None before the first
    lag_p95_s: float | None = None
    frame_rate: float = 0.0  # frames fed per second, recently
    frames: int = 0  # fed
    dropped_frames: int = 0  # fed but never part of a request
    windows: int = 0  # answered
    dropped_windows: int = 0  # due while a request was in flight, then replaced by a newer one
    num_events: int = 0
    events: tuple[LiveEvent, ...] = ()
    problem: str | None = None  # one sentence on why there are no answers now; None if all is well
    model: str | None = None  # that answers; None until the server has named it
    warnings: tuple[str, ...] = ()  # for every answer of this model
    signer: SignerBox | None = None  # the box that frames are cropped to; None for whole frames
    is_signer_missing: bool = False  # the model needs cropped frames, but no signer was found yet
    advice: Advice | None = None  # to the signer in front of the camera, if requested
