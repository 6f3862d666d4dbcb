"""The figures of measured loads: percentiles, the server's own times and the knee, also as JSON."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asl_triton.bench.load import ClosedLoop, Loop
from asl_triton.models.served import ServedModel

KNEE_GAIN = 0.10  # of throughput
BUSY = 0.9  # of the time: beyond this, this process may be the bottleneck


def format_number(value: float) -> str:
    """Format a measurement with three significant digits, or as a whole number from 100 on."""
    return f"{value:.3g}" if value < 99.95 else f"{value:,.0f}"


@dataclass(frozen=True)
class Rules:
    """How long to measure: in windows of at least `window_s` seconds, until three agree within `stable` (a fraction).

    The defaults are perf_analyzer's.
    """

    window_s: float = 5.0
    warm_up_s: float = 1.0
    stable: float = 0.10
    max_windows: int = 10


@dataclass(frozen=True)
class Latency:
    """Seconds from when a clip was due until it was answered. p99 means that 99 % waited this long or less."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, latencies_s: Sequence[float]) -> "Latency":
        """Compute from at least one latency. Percentiles are measured latencies, never interpolated."""
        quantiles = np.quantile(latencies_s, [0.5, 0.9, 0.95, 0.99, 1], method="inverted_cdf")
        return cls(float(np.mean(latencies_s)), *map(float, quantiles))


@dataclass(frozen=True)
class ServerSide:
    """The server's own figures. Seconds in the queue and computing are per request; `batch_size` is per execution."""

    requests: int
    executions: int
    queue_s: float
    compute_s: float
    batch_size: float


@dataclass(frozen=True)
class Figures:
    """The figures of one load over its last three windows. Only `failed` counts all requests of the load.

    `throughput` is clips answered per second. `sent_bytes` and `received_bytes` are the sizes of one clip's tensors.
    `client_busy` is the fraction of time that this process's event loop was computing.
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
    counts_fit: bool  # the server's count of requests roughly matches the answers here

    def as_json(self) -> dict[str, Any]:
        """Return the figures and the load that they belong to, as JSON values."""
        fields = dataclasses.asdict(self)
        load = fields.pop("loop")
        return {"loop": "closed" if isinstance(self.loop, ClosedLoop) else "open", **load, **fields}


@dataclass(frozen=True)
class Point:
    """Throughput and p95 latency at a number of clips in flight."""

    load: float
    throughput: float
    p95_s: float


def find_knee(points: Sequence[Point], gain: float = KNEE_GAIN) -> Point | None:
    """Find the smallest load beyond which throughput never grows by `gain` (a fraction) or more, but p95 latency grows.

    Returns None if throughput still grows at the highest load. The knee is defined as in Chiu and Jain 1989, "Analysis
    of the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks": up to it, more load gives
    more throughput; beyond it, mostly longer waits.
    """
    ordered = sorted(points, key=lambda point: point.load)
    for place, point in enumerate(ordered[:-1], start=1):
        if all(p.throughput < point.throughput * (1 + gain) and p.p95_s > point.p95_s for p in ordered[place:]):
            return point
    return None


@dataclass(frozen=True)
class Report:
    """The report of `asl-triton bench`.

    `asked` describes what was sent. `levels` are the loads that got any answers, in the order they were run. `errors`
    counts failed requests by reason. `stopped` says why the run ended early, if it did.
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
        """Describe the knee. None with fewer than two closed loops."""
        if len(self.closed) < 2:
            return None
        if self.knee is None:
            most = max(f.loop.in_flight for f in self.closed)
            return f"no knee up to {most} in flight: throughput still grows; try more"
        at, clips, p95 = self.knee.load, format_number(self.knee.throughput), format_number(1000 * self.knee.p95_s)
        return (
            f"the knee is at {at:g} in flight, {clips} clips per second with a p95 of {p95} ms: "
            f"beyond it, throughput grows by less than {100 * KNEE_GAIN:g} % and every clip waits longer"
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
                "Keep the machine quiet, or use longer windows (--seconds)"
            )
        if busy := labels(*(f.client_busy > BUSY for f in self.levels)):
            found.append(
                f"with {busy}, this process was busy more than {100 * BUSY:g} % of the time, so it may be the "
                "bottleneck instead of the server. Run several processes or machines at once"
            )
        if shared := labels(*(not f.counts_fit for f in self.levels)):
            found.append(
                f"with {shared}, the server's count of requests does not match: it has other clients, or there are "
                f"several servers at {self.address}. Its queue, compute and batch are not for these clips alone"
            )
        if refused := labels(*(f.not_started > 0 for f in self.levels)):
            found.append(
                f"with {refused}, some clips were not started because --in-flight clips were already in flight: the "
                "server cannot keep up, and the latencies do not include those clips"
            )
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """Return the content of `bench.json`."""
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
