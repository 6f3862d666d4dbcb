"""What measured loads say: quantiles, the server's own times, the knee. To JSON, and to files."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from asl_triton.bench.load import ClosedLoop, Loop
from asl_triton.bench.measurement import Level, Measured, Rules
from asl_triton.files import write_text

KNEE_GAIN = 0.10  # of throughput
BUSY = 0.9  # of the time: from there on, it may be this process that limits
FITTING = 0.1  # of the requests may be more or fewer by the server's count


def rounded(value: float) -> str:
    """A measurement for people: three digits, all of them from a hundred on."""
    return f"{value:.3g}" if value < 99.95 else f"{value:,.0f}"


@dataclass(frozen=True)
class Latency:
    """Seconds from when a clip was due until it was answered; p99: 99 in 100 waited so long or less."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, latencies_s: Sequence[float]) -> "Latency":
        """Of one answer or more. A quantile is an answer that was measured, never one between two."""
        quantiles = np.quantile(latencies_s, [0.5, 0.9, 0.95, 0.99, 1], method="inverted_cdf")
        return cls(float(np.mean(latencies_s)), *map(float, quantiles))


@dataclass(frozen=True)
class ServerSide:
    """What the server counted. Seconds are one request's, on average: in the queue, and under computation.

    `batch_size` is how many requests an execution took, on average.
    """

    requests: int
    executions: int
    queue_s: float
    compute_s: float
    batch_size: float


@dataclass(frozen=True)
class Figures:
    """One load, over its last three windows. `failed` alone counts from the first request of the load to the last.

    `throughput` is clips answered a second; `sent_bytes` and `received_bytes` are of the tensors of one clip.
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
    counts_fit: bool  # the server counted about as many requests as were asked here

    @classmethod
    def of(cls, level: Level) -> "Figures":
        """The figures of a level that has an answer in its last three windows."""
        windows = level.measured
        latencies_s = [latency_s for window in windows for latency_s in window.latencies_s]
        seconds = sum(window.seconds for window in windows)
        requests = sum(window.server.requests for window in windows)
        executions = sum(window.server.executions for window in windows)
        ours = sum(window.traffic.requests for window in windows)
        return cls(
            loop=level.loop,
            stable=level.stable,
            windows=len(level.windows),
            seconds=seconds,
            answered=len(latencies_s),
            failed=sum(level.errors.values()),
            not_started=sum(window.not_started for window in windows),
            throughput=len(latencies_s) / seconds,
            latency_s=Latency.of(latencies_s),
            server=ServerSide(
                requests=requests,
                executions=executions,
                queue_s=sum(window.server.queue_s for window in windows) / max(requests, 1),
                compute_s=sum(window.server.compute_s for window in windows) / max(requests, 1),
                batch_size=requests / max(executions, 1),
            ),
            sent_bytes=sum(window.traffic.sent for window in windows) / len(latencies_s),
            received_bytes=sum(window.traffic.received for window in windows) / len(latencies_s),
            client_busy=sum(window.client_busy * window.seconds for window in windows) / seconds,
            counts_fit=abs(requests - ours) <= FITTING * ours + level.loop.in_flight,
        )

    def as_json(self) -> dict[str, Any]:
        """The figures on one floor with the load that they are of."""
        fields = dataclasses.asdict(self)
        load = fields.pop("loop")
        return {"loop": "closed" if isinstance(self.loop, ClosedLoop) else "open", **load, **fields}


@dataclass(frozen=True)
class Point:
    """Throughput and p95 latency under a load, which counts what is varied: clips in flight, or server instances."""

    load: float
    throughput: float
    p95_s: float


def knee(points: Sequence[Point], gain: float = KNEE_GAIN) -> Point | None:
    """The least load beyond which throughput never grows by `gain` (a share) or more, while p95 latency does grow.

    None where throughput still grows at the greatest load, so that the knee, if there is one, lies beyond. The knee is
    that of Chiu and Jain 1989, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer
    Networks": up to it more load gives more throughput, beyond it little but longer waits.
    """
    ordered = sorted(points, key=lambda point: point.load)
    for place, point in enumerate(ordered[:-1], start=1):
        if all(p.throughput < point.throughput * (1 + gain) and p.p95_s > point.p95_s for p in ordered[place:]):
            return point
    return None


@dataclass(frozen=True)
class Report:
    """All that `asl-triton bench` has to say."""

    address: str
    rules: Rules
    measured: Measured

    @cached_property
    def figures(self) -> tuple[Figures, ...]:
        """The loads under which something was answered, in the order they were put on."""
        return tuple(Figures.of(level) for level in self.measured.levels if any(w.latencies_s for w in level.measured))

    @property
    def closed(self) -> tuple[Figures, ...]:
        """Those of the closed loop."""
        return tuple(figures for figures in self.figures if isinstance(figures.loop, ClosedLoop))

    @property
    def open(self) -> tuple[Figures, ...]:
        """Those of the open loop."""
        return tuple(figures for figures in self.figures if not isinstance(figures.loop, ClosedLoop))

    @property
    def knee(self) -> Point | None:
        """The knee over clips in flight, if it was reached."""
        return knee([Point(f.loop.in_flight, f.throughput, f.latency_s.p95) for f in self.closed])

    @property
    def knee_told(self) -> str | None:
        """A sentence on the knee, where two levels or more can have one."""
        if len(self.closed) < 2:
            return None
        if self.knee is None:
            most = max(f.loop.in_flight for f in self.closed)
            return f"no knee up to {most} in flight: throughput still grows; try more"
        at, clips, p95 = self.knee.load, rounded(self.knee.throughput), rounded(1000 * self.knee.p95_s)
        return (
            f"the knee is at {at:g} in flight, {clips} clips a second with a p95 of {p95} ms: "
            f"beyond it less than {100 * KNEE_GAIN:g} % is gained, and all wait longer"
        )

    @property
    def errors(self) -> Counter[str]:
        """How many requests failed, by reason."""
        return sum((Counter(level.errors) for level in self.measured.levels), Counter())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the figures should know, one sentence each."""

        def labels(chosen: Sequence[Figures]) -> str:
            return ", ".join(figures.loop.label for figures in chosen)

        found = []
        if unstable := [f for f in self.figures if not f.stable]:
            found.append(
                f"not stable: no three windows agreed within {100 * self.rules.stable:g} % with {labels(unstable)}. "
                "Quiet the machine, or give longer windows (--seconds)"
            )
        if busy := [f for f in self.figures if f.client_busy > BUSY]:
            found.append(
                f"with {labels(busy)} this process computed more than {100 * BUSY:g} % of the time: it, and not the "
                "server, may be what limits. Ask from several processes or machines at once"
            )
        if shared := [f for f in self.figures if not f.counts_fit]:
            found.append(
                f"with {labels(shared)} the server counted other requests than these: somebody else asks too, or there "
                f"are several servers at {self.address}. Its queue, compute and batch are not of these clips alone"
            )
        if refused := [f for f in self.figures if f.not_started]:
            found.append(
                f"with {labels(refused)} some clips were not started, since as many as may be (--in-flight) were under "
                "way: so much does not get through, and those that did not start are in no latency"
            )
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON takes it: what `bench.json` holds."""
        model = self.measured.model
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
            "asked": self.measured.what,
            "rules": dataclasses.asdict(self.rules),
            "levels": [figures.as_json() for figures in self.figures],
            "knee": None if self.knee is None else dataclasses.asdict(self.knee),
            "knee_gain": KNEE_GAIN,
            "errors": self.errors,
            "warnings": self.warnings,
            "stopped": self.measured.stopped,
        }


def written(report: Report, page: str, output: Path) -> tuple[Path, ...]:
    """Write `bench.json` and `bench.html`: the paths. Raises `AslTritonError`: they cannot be written."""
    as_json = json.dumps(report.as_json(), indent=1)
    return write_text(output / "bench.json", as_json), write_text(output / "bench.html", page)
