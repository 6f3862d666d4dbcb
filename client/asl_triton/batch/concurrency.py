"""How many clips are under way at once: a limit that adapts to the server and the decoders."""

from dataclasses import dataclass
from typing import Literal, Protocol

MAX_IN_FLIGHT = 32  # clips, unless the caller says otherwise: a few hundred MB
MAX_SLOWDOWN = 2.0  # times the best time per frame: beyond it clips mostly wait for each other
DECREASE = 0.75
PROBE_EVERY = 1024  # clips: servers change, so start over from a quarter of the limit
DECODERS_BUSY = 0.8  # share of their time from which decoding is the bottleneck

Bottleneck = Literal["decoding", "server"]


class TimedResult(Protocol):
    """What the controller needs to know about an answered clip."""

    @property
    def num_frames(self) -> int:
        """Frames that were read."""

    @property
    def decode_s(self) -> float:
        """Seconds of decoding."""

    @property
    def wait_s(self) -> float:
        """The remaining seconds from its start to its answer."""


class ConcurrencyController:
    """Sets `limit` between `least` and `most`: additive increase, multiplicative decrease (AIMD; Chiu and Jain 1989).

    Once per epoch, which is as many answered clips as are under way, the limit grows by one. It shrinks by a quarter
    when clips took more than twice as long per frame as in the best epoch, and by half when the server had no room.
    With `least` equal to `most` it is fixed.
    """

    def __init__(self, least: int, most: int, decoders: int) -> None:
        self.least, self.most, self.decoders = least, most, decoders
        self.limit = min(max(least, decoders + 2), most)
        self.clips = 0
        self.decode_s = self.clip_s = 0.0
        self._best = float("inf")  # seconds per frame
        self._epoch: list[float] = []  # seconds per frame of each clip

    def record(self, clip: TimedResult) -> None:
        """Take an answered clip into account."""
        seconds = clip.decode_s + clip.wait_s
        self.clips += 1
        self.decode_s += clip.decode_s
        self.clip_s += seconds
        self._epoch.append(seconds / max(clip.num_frames, 1))
        if self.clips % PROBE_EVERY == 0:
            self.limit, self._best = max(self.limit // 4, self.least), float("inf")
            self._epoch.clear()
        if len(self._epoch) < self.limit:
            return
        mean = sum(self._epoch) / len(self._epoch)
        self._epoch.clear()
        self._best = min(self._best, mean)
        is_slow = mean > MAX_SLOWDOWN * self._best
        self.limit = min(max(int(self.limit * DECREASE) if is_slow else self.limit + 1, self.least), self.most)

    def record_overload(self) -> None:
        """Halve the limit: the server had no room."""
        self.limit = max(self.limit // 2, self.least)
        self._epoch.clear()

    def report(self, seconds: float) -> "ConcurrencyReport":
        """Summarize a run of that many seconds."""
        busy = self.decode_s / (seconds * self.decoders)
        return ConcurrencyReport(
            clips_under_way=self.clip_s / seconds,
            limit=self.limit,
            decoders=self.decoders,
            decoders_busy=busy,
            bottleneck="decoding" if busy >= DECODERS_BUSY else "server",
        )


@dataclass(frozen=True)
class ConcurrencyReport:
    """`clips_under_way` on average, the final `limit`, and the share of their time that the decoders were busy."""

    clips_under_way: float
    limit: int
    decoders: int
    decoders_busy: float
    bottleneck: Bottleneck
