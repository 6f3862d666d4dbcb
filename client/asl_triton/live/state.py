"""How a live session stands: what was fed, dropped, answered and told, and how late."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

EVENTS_KEPT = 100
LAGS_KEPT = 1000  # answers: five minutes and more
RATE_OVER = 50  # frames
SILENT_S = 1.0  # without a frame: nobody knows what is being signed now


@dataclass(frozen=True)
class LiveEvent:
    """A sign was recognized. `start_s` and `end_s` are of the clock that the frames were fed with.

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
    """How a live session stands. Counts are since it began; `events` holds the newest 100, oldest first."""

    gloss: str | None = None  # that is being signed now; None: hands down, or nobody knows
    confidence: float = 0.0  # of `gloss`, or of what comes nearest where that is None
    lag_s: float | None = None  # p50 over the last 1,000 answers; None before the first
    lag_p95_s: float | None = None
    frame_rate: float = 0.0  # frames fed a second, of late
    frames: int = 0  # fed
    dropped_frames: int = 0  # fed, and never asked about
    windows: int = 0  # answered
    dropped_windows: int = 0  # due while another was under way, and overtaken by a newer one
    num_events: int = 0
    events: tuple[LiveEvent, ...] = ()
    problem: str | None = None  # why there is no answer now, in a sentence; None when all is well
    model: str | None = None  # which answers; None until the server said so


@dataclass
class LiveCounters:
    """What a `LiveState` is made of, for one thread at a time."""

    frames: int = 0
    windows: int = 0
    num_events: int = 0
    dropped_frames: int = 0  # by nobody's window
    dropped_windows: int = 0
    fed_s: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_OVER))
    lags_s: deque[float] = field(default_factory=lambda: deque(maxlen=LAGS_KEPT))
    events: deque[LiveEvent] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))

    def feed(self, now_s: float) -> None:
        """Count a frame."""
        self.frames += 1
        self.fed_s.append(now_s)

    def is_fed(self, now_s: float) -> bool:
        """Whether frames come."""
        return bool(self.fed_s) and now_s - self.fed_s[-1] < SILENT_S

    def answer(self, lag_s: float, told: list[LiveEvent]) -> None:
        """Count an answer, and the signs that came of it."""
        self.windows += 1
        self.lags_s.append(lag_s)
        self.num_events += len(told)
        self.events += told

    def state(self, now_s: float) -> LiveState:
        """The part of the state that is known here."""
        took_s = now_s - self.fed_s[0] if self.fed_s else 0.0
        lag_s, lag_p95_s = np.quantile(self.lags_s, [0.5, 0.95]).tolist() if self.lags_s else (None, None)
        return LiveState(
            lag_s=lag_s,
            lag_p95_s=lag_p95_s,
            frame_rate=len(self.fed_s) / took_s if took_s > 0 else 0.0,
            frames=self.frames,
            dropped_frames=self.dropped_frames,
            windows=self.windows,
            dropped_windows=self.dropped_windows,
            num_events=self.num_events,
            events=tuple(self.events),
        )
