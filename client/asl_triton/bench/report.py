"""What measured loads say: percentiles, the server's own times, the knee. To JSON."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asl_triton.bench.load import ClosedLoop, Loop
from asl_triton.models.served import ServedModel

KNEE_GAIN = 0.10  # of throughput
BUSY = 0.9  # of the time: from there on, this process may be the limit


def format_number(value: float) -> str:
    """A measurement for people: three digits, or all of them from a hundred on."""
    return f"{value:.3g}" if value < 99.95 else f"{value:,.0f}"


@dataclass(frozen=True)
class Rules:
    """How long to measure: windows of at least `window_s` seconds, until three agree within `stable` (a fraction).

    The defaults are perf_analyzer's.
    """

    window_s: float = 5.0
    warm_up_s: float = 1.0
    stable: float = 0.10
    max_windows: int = 10


@dataclass(frozen=True)
class Latency:
    """Seconds from when a clip was due until it was answered; p99: 99 in 100 waited this long or less."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, latencies_s: Sequence[float]) -> "Latency":
        """Of one answer or more. A percentile is a latency that was measured, never one between two."""
        quantiles = np.quantile(latencies_s, [0.5, 0.9, 0.95, 0.99, 1], method="inverted_cdf")
        return cls(float(np.mean(latencies_s)), *map(float, quantiles))


@dataclass(frozen=True)
class ServerSide:
    """What the server counted. Seconds, in the queue and computing, are per request; `batch_size` is per execution."""

    requests: int
    executions: int
    queue_s: float
    compute_s: float
    batch_size: float


@dataclass(frozen=True)
class Figures:
    """One load, over its last three windows; only `failed` counts from the first request of the load to the last.

    `throughput` is clips answered per second; `sent_bytes` and `received_bytes` are the tensors of one clip;
    `client_busy` is the fraction of the time in which this process's event loop was computing.
    """

    loop: Loop
    stable: bool
    windows: int  # in all
    seconds: float
    answered: int
    failed: int
    not_started: int
    throughput: float
    latency_s: Latency
    server: ServerSide
    sent_bytes: float
    received_bytes: float
    client_busy: float
    counts_fit: bool  # the server counted about as many requests as were answered here

    def as_json(self) -> dict[str, Any]:
        """The figures and, next to them, the load that they are of."""
        fields = dataclasses.asdict(self)
        load = fields.pop("loop")
        return {"loop": "closed" if isinstance(self.loop, ClosedLoop) else "open", **load, **fields}


@dataclass(frozen=True)
class Point:
    """Throughput and p95 latency with a number of clips in flight."""

    load: float
    throughput: float
    p95_s: float


def find_knee(points: Sequence[Point], gain: float = KNEE_GAIN) -> Point | None:
    """The smallest load beyond which throughput never grows by `gain` (a fraction) or more, while p95 latency does.

    None where throughput still grows at the greatest load: the knee, if there is one, lies beyond. The knee is that of
    Chiu and Jain 1989, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer
    Networks": up to it more load gives more throughput, beyond it mostly longer waits.
    """
    ordered = sorted(points, key=lambda point: point.load)
    for place, point in enumerate(ordered[:-1], start=1):
        if all(p.throughput < point.throughput * (1 + gain) and p.p95_s > point.p95_s for p in ordered[place:]):
            return point
    return None


@dataclass(frozen=True)
class Report:
    """The loads that were put on a model, as `asl-triton bench` reports them.

    `asked` says what was sent; `levels` are the loads under which something was answered, in the order they were put
    on; `errors` counts failed requests by reason; `stopped` says why it ended early, if it did.
    """

    address: str
    model: ServedModel
    asked: str
    rules: Rules
    levels: tuple[Figures, ...]
    errors: Counter[str]
    stopped: str | None = None

    @property
    def closed(self) -> tuple[Figures, ...]:
        """The levels of the closed loop."""
        return tuple(level for level in self.levels if isinstance(level.loop, ClosedLoop))

    @property
    def knee(self) -> Point | None:
        """The knee over clips in flight, if it was reached."""
        return find_knee([Point(f.loop.in_flight, f.throughput, f.latency_s.p95) for f in self.closed])

    @property
    def knee_sentence(self) -> str | None:
        """What to say of the knee, given two closed loops or more."""
        if len(self.closed) < 2:
            return None
        if self.knee is None:
            most = max(f.loop.in_flight for f in self.closed)
            return f"no knee up to {most} in flight: throughput still grows; try more"
        at, clips, p95 = self.knee.load, format_number(self.knee.throughput), format_number(1000 * self.knee.p95_s)
        return (
            f"the knee is at {at:g} in flight, {clips} clips a second with a p95 of {p95} ms: "
            f"beyond it throughput grows by less than {100 * KNEE_GAIN:g} %, and every clip waits longer"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the figures should know, one sentence or two each."""

        def labels(*flags: bool) -> str:
            return ", ".join(str(f.loop) for f, flag in zip(self.levels, flags, strict=True) if flag)

        found = []
        if unstable := labels(*(not f.stable for f in self.levels)):
            found.append(
                f"not stable: no three windows agreed within {100 * self.rules.stable:g} % with {unstable}. "
                "Keep the machine quiet, or give longer windows (--seconds)"
            )
        if busy := labels(*(f.client_busy > BUSY for f in self.levels)):
            found.append(
                f"with {busy} this process computed more than {100 * BUSY:g} % of the time: it may be the limit, not "
                "the server. Send from several processes or machines at once"
            )
        if shared := labels(*(not f.counts_fit for f in self.levels)):
            found.append(
                f"with {shared} the server counted other requests than these: somebody else asks too, or there are "
                f"several servers at {self.address}. Its queue, compute and batch are not of these clips alone"
            )
        if refused := labels(*(f.not_started > 0 for f in self.levels)):
            found.append(
                f"with {refused} some clips were not started, because --in-flight of them were under way already: the "
                "server cannot keep up, and the latencies leave those clips out"
            )
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """The content of `bench.json`."""
        model = self.model
        return {
            "server": self.address,
            "model": {
                "name": model.name,
                "version": model.version,
                "preset": model.preset.name,
                "precision": model.precision,
                "input": model.datatype.lower(),
                "checkpoint_sha256": model.checkpoint_sha256,
            },
            "asked": self.asked,
            "rules": dataclasses.asdict(self.rules),
            "levels": [level.as_json() for level in self.levels],
            "knee": None if self.knee is None else dataclasses.asdict(self.knee),
            "knee_gain": KNEE_GAIN,
            "errors": self.errors,
            "warnings": self.warnings,
            "stopped": self.stopped,
        }
