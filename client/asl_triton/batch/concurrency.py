"""How many clips are under way at once: as many as keep the slowest part busy, and few that only wait."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

LEAST_WAITING, MOST_WAITING = 2.0, 4.0  # clips that wait, by estimate: with fewer something idles at times
MAX_IN_FLIGHT = 32  # clips, where nobody says otherwise: a few hundred MB
PROBE_EVERY = 1024  # clips: servers change, and how quick one can be is seen where few are asked about
DECODERS_BUSY = 0.8  # of their time: then they are what the rest waits for

Bottleneck = Literal["decoding", "server"]


class TimedResult(Protocol):
    """What is known of a clip that was answered."""

    @property
    def num_frames(self) -> int:
        """Frames that were read."""

    @property
    def decode_s(self) -> float:
        """Seconds that a decoder worked on it."""

    @property
    def wait_s(self) -> float:
        """The other seconds from its beginning to its answer."""


@dataclass
class ConcurrencyController:
    """Sets `limit` between `least` and `most` by how long clips take: TCP Vegas (Brakmo and Peterson 1995) for clips.

    The fastest clip per frame counts as one that did not wait. If clips take t per frame and that one took q, then
    `limit` * (1 - q / t) of those under way are waiting: 2 to 4 are wanted. The limit doubles until they are, then
    moves by one, once per as many clips as are under way. It is halved when the server had no room. Every thousand
    clips it drops to a quarter for a moment and the fastest is looked for again, as in BBR (Cardwell et al. 2016). With
    `least` equal to `most` it is fixed. A plain AIMD limit was tried: on two cores it settled at 2, at half the
    throughput.
    """

    least: int
    most: int
    decoders: int
    limit: int = 0
    clips: int = 0
    decode_s: float = 0.0
    clip_s: float = 0.0
    _is_starting: bool = True
    _quickest: float = float("inf")  # seconds a frame
    _epoch: list[float] = field(default_factory=list)  # seconds a frame, since the limit was last looked at
    _probe: int = 0  # clips until the limit is what it was
    _usual: int = 0  # what it was

    def __post_init__(self) -> None:
        self.limit = self.limit or min(max(self.least, self.decoders + 2), self.most)

    def record(self, clip: TimedResult) -> None:
        """Take account of a clip that was answered."""
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
            self._probe = self._usual + self.limit  # those that are under way come first
            self._epoch.clear()
        else:
            self._epoch.append(a_frame)
            if len(self._epoch) >= self.limit:
                self._adapt(sum(self._epoch) / len(self._epoch))
                self._epoch.clear()

    def record_overload(self) -> None:
        """Take account of a server that had no room."""
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
        """What was busy in a run that took this many seconds."""
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
    """What was busy: `clips_under_way` on average, `limit` at the end; the share of their time that decoders worked."""

    clips_under_way: float
    limit: int
    decoders: int
    decoders_busy: float
    bottleneck: Bottleneck
