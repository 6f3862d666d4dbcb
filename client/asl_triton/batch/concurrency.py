"""Choose how many clips are in flight: enough to keep the slowest part busy, with few that only wait."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

LEAST_WAITING, MOST_WAITING = 2.0, 4.0  # estimated clips that wait: with fewer, something idles at times
MAX_IN_FLIGHT = 32  # clips, by default: a few hundred MB
PROBE_EVERY = 1024  # clips: servers change, and their best speed shows when few clips are in flight
DECODERS_BUSY = 0.8  # of their time: above this, they are the bottleneck

Bottleneck = Literal["decoding", "server"]


class TimedResult(Protocol):
    """The timing of a clip that was answered."""

    @property
    def num_frames(self) -> int:
        """Frames that were read."""

    @property
    def decode_s(self) -> float:
        """Seconds that a decoder worked on it."""

    @property
    def wait_s(self) -> float:
        """Other seconds between the clip's start and its answer."""


@dataclass
class ConcurrencyController:
    """Sets `limit` between `least` and `most` by how long clips take, as TCP Vegas does (Brakmo and Peterson 1995).

    The fastest clip per frame counts as one that did not wait. If clips take t per frame and that one took q, then
    `limit` * (1 - q / t) of the clips in flight are waiting. The goal is 2 to 4. The limit doubles until it is reached,
    then moves by at most one per `limit` clips. It is halved when the server was too busy. Every thousand clips, it
    briefly drops to a quarter to measure the fastest clip again, as in BBR (Cardwell et al. 2016). If `least` equals
    `most`, the limit is fixed. A plain AIMD limit settled at 2 on two cores, with half the throughput.
    """

    least: int
    most: int
    decoders: int
    limit: int = 0
    clips: int = 0
    decode_s: float = 0.0
    clip_s: float = 0.0
    _is_starting: bool = True
    _quickest: float = float("inf")  # seconds per frame
    _epoch: list[float] = field(default_factory=list)  # seconds per frame, since the limit was last adapted
    _probe: int = 0  # clips until the limit is restored
    _usual: int = 0  # the limit to restore

    def __post_init__(self) -> None:
        self.limit = self.limit or min(max(self.least, self.decoders + 2), self.most)

    def record(self, clip: TimedResult) -> None:
        """Record a clip that was answered."""
        seconds = clip.decode_s + clip.wait_s
        self.clips += 1
        self.decode_s += clip.decode_s
        self.clip_s += seconds
        if self.least == self.most:
            return
        a_frame = seconds / max(clip.num_frames, 1)
        self._quickest = min(self._quickest, a_frame)
        if self._probe:
            self._probe -= 1
            if not self._probe:
                self.limit = self._usual
        elif self.clips % PROBE_EVERY == 0:
            self._usual, self._quickest = self.limit, a_frame
            self.limit = max(self.limit // 4, self.least)
            self._probe = self._usual + self.limit  # clips already in flight finish first
            self._epoch.clear()
        else:
            self._epoch.append(a_frame)
            if len(self._epoch) >= self.limit:
                self._adapt(sum(self._epoch) / len(self._epoch))
                self._epoch.clear()

    def record_overload(self) -> None:
        """Record that the server was too busy."""
        self.limit = max(self.limit // 2, self.least)
        self._usual = max(self._usual // 2, self.least)
        self._is_starting = False

    def _adapt(self, a_frame: float) -> None:
        waiting = self.limit * (1 - self._quickest / a_frame)
        if waiting < LEAST_WAITING:
            self.limit = min(2 * self.limit if self._is_starting else self.limit + 1, self.most)
        else:
            self._is_starting = False
            self.limit = max(self.limit - (waiting > MOST_WAITING), self.least)

    def report(self, seconds: float) -> "ConcurrencyReport":
        """Report what was busy in a run that took this many seconds."""
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
    """What was busy: average `clips_under_way`, the final `limit`, and the share of time that decoders worked."""

    clips_under_way: float
    limit: int
    decoders: int
    decoders_busy: float
    bottleneck: Bottleneck
