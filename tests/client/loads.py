"""Made-up results of load measurements."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from asl_triton.bench.load import ClosedLoop, Loop, OpenLoop, Request
from asl_triton.bench.measurement import Counts, Level, Window
from asl_triton.bench.report import Report, Rules

RULES = Rules(window_s=10.0, warm_up_s=1.0)


def window(throughput: float, latency_s: float, **counted: float) -> Window:
    """Build a window of ten seconds with this many answers per second, all with the same latency.

    `counted` overrides its counts.
    """
    count = round(10 * throughput)
    requests = tuple(Request(n, n, n + latency_s) for n in range(count))
    counts = Counts(count, count, 0.0, 0.0, count, 1000 * count, count, wall_s=10.0, busy_s=1.0)
    return Window(10.0, requests, 0, counts._replace(**counted))


def levels(*throughputs: float, rates: bool = False) -> list[Level]:
    """Build stable levels of 1, 2, 4, ... requests in flight or, with `rates`, of rates that the server sustains."""
    built = []
    for index, throughput in enumerate(throughputs):
        load = 2**index
        loop: Loop = OpenLoop(throughput) if rates else ClosedLoop(load)
        built.append(Level(loop, (window(throughput, load / throughput),) * 3, True, {}))
    return built


def report_of(levels: Sequence[Level], model: Any, stopped: str | None = None) -> Report:
    figures = tuple(level.summarize() for level in levels)
    errors = sum((Counter(level.errors) for level in levels), Counter[str]())
    return Report("host:8001", model, "64 random frames a clip", RULES, figures, errors, stopped)
