"""What a live session reports: signs, and how it goes."""

from dataclasses import dataclass

from asl_triton.results import SignerBox
from asl_triton.signer.guide import Advice


@dataclass(frozen=True)
class LiveEvent:
    """A sign was recognized. `start_s` and `end_s` are by the clock that the frames were fed with.

    `lag_s`: seconds from the moment when the newest frame of the window was fed to the moment of this event.
    """

    gloss: str
    class_id: int
    confidence: float
    start_s: float
    end_s: float  # as far as it was seen then: the sign may go on
    lag_s: float


@dataclass(frozen=True)
class LiveState:
    """How a live session goes. Counts are since it began; `events` holds the newest 500, oldest first."""

    gloss: str | None = None  # being signed now; None: hands down, or unknown
    confidence: float = 0.0  # of `gloss`, or of the nearest gloss where that is None
    lag_s: float | None = None  # p50 over the last 1,000 answers; None before the first
    lag_p95_s: float | None = None
    frame_rate: float = 0.0  # frames fed per second, recently
    frames: int = 0  # fed
    dropped_frames: int = 0  # fed, and never part of a request
    windows: int = 0  # answered
    dropped_windows: int = 0  # due while a request was under way, and replaced by a newer one
    num_events: int = 0
    events: tuple[LiveEvent, ...] = ()
    problem: str | None = None  # why there are no answers now, in a sentence; None when all is well
    model: str | None = None  # that answers; None until the server said so
    warnings: tuple[str, ...] = ()  # that go with each answer of this model
    signer: SignerBox | None = None  # the box that the crops are cut from; None: whole frames
    is_signer_missing: bool = False  # the model should not be shown whole frames, and no signer was found yet
    advice: Advice | None = None  # to the signer before the camera, if that is asked for
