"""Measured loads as one HTML page with plots: it needs no network, no script, and shows in light and dark."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from asl_triton.bench.load import ClosedLoop
from asl_triton.bench.report import Figures, Report, rounded
from asl_triton.writers.html import load_templates, render_template

WIDTH, HEIGHT = 340, 220  # of a plot's inside, in pixels
TICKS = 5
NAME_GAP = 16  # pixels from the name of one line to the next
LABEL_WIDTH = 34  # pixels that a tick's label takes

Measure = Callable[[Figures], float]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One measure over the load. `told` says what each point is; `name_y` is the height of its name, behind its end."""

    name: str
    points: tuple[tuple[float, float], ...]
    told: tuple[str, ...]
    name_y: float

    @property
    def path(self) -> str:
        """The points as SVG takes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Plot:
    """Lines over loads. Ticks and points count in pixels from the upper left; `knee_x` is where the knee is, if any."""

    title: str
    x_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    knee_x: float | None = None


def render(report: Report) -> str:
    """The page. Model names and errors come from outside: the template escapes all that it is given."""
    load_templates().filters["rounded"] = rounded
    return render_template("bench.html", report=report, plots=plots(report), width=WIDTH, height=HEIGHT)


def plots(report: Report) -> list[Plot]:
    """Throughput and latency over clips in flight and over the rate, each where two loads or more tell of it."""
    found = []
    quantiles = {name: quantile(name) for name in ("p50", "p90", "p95", "p99")}
    if len(report.closed) > 1:
        knee = report.knee.load if report.knee else None
        answered = {"answered": throughput}
        found.append(plot("Clips a second", "clips in flight", report.closed, answered, knee))
        found.append(plot("Latency in ms", "clips in flight", report.closed, quantiles, knee))
    if len(report.open) > 1:
        answered = {"answered": throughput, "due": load_of}
        found.append(plot("Clips a second", "clips due a second", report.open, answered))
        found.append(plot("Latency in ms", "clips due a second", report.open, quantiles))
    return found


def throughput(figures: Figures) -> float:
    """Clips answered a second."""
    return figures.throughput


def quantile(name: str) -> Measure:
    """A quantile of latency, in milliseconds."""
    return lambda figures: 1000 * float(getattr(figures.latency_s, name))


def load_of(figures: Figures) -> float:
    """What a level is of: clips in flight, or clips due a second."""
    loop = figures.loop
    return float(loop.in_flight) if isinstance(loop, ClosedLoop) else loop.rate


def plot(
    title: str, x_name: str, levels: Sequence[Figures], measures: Mapping[str, Measure], knee: float | None = None
) -> Plot:
    """Measures of levels over their loads: the load on a logarithmic axis, what is measured on one from zero."""
    levels = sorted(levels, key=load_of)
    loads = [load_of(level) for level in levels]
    step, highest = scale(max(measure(level) for measure in measures.values() for level in levels))

    def x(load: float) -> float:
        return WIDTH * math.log(load / loads[0]) / math.log(loads[-1] / loads[0])

    def y(value: float) -> float:
        return HEIGHT * (1 - value / highest)

    ends = apart([y(measure(levels[-1])) for measure in measures.values()])
    lines = []
    for (name, measure), name_y in zip(measures.items(), ends, strict=True):
        values = [measure(level) for level in levels]
        told = [f"{name}: {rounded(value)} at {load:g} {x_name}" for value, load in zip(values, loads, strict=True)]
        points = tuple((x(load), y(value)) for load, value in zip(loads, values, strict=True))
        lines.append(Line(name, points, tuple(told), name_y))
    return Plot(
        title=title,
        x_name=x_name,
        x_ticks=tuple(readable([Tick(x(load), f"{load:g}") for load in loads])),
        y_ticks=tuple(Tick(y(n * step), f"{n * step:,g}") for n in range(round(highest / step) + 1)),
        lines=tuple(lines),
        knee_x=None if knee is None else x(knee),
    )


def scale(greatest: float) -> tuple[float, float]:
    """The distance of ticks, a round number, and the tick that is not below the greatest value."""
    rough = greatest / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * digit for digit in (1, 2, 5, 10) if size * digit >= rough)
    return step, step * math.ceil(greatest / step)


def apart(heights: Sequence[float]) -> list[float]:
    """Heights at which names can stand, as few pixels higher or lower as need be: none on another, none above 0."""
    placed = list(heights)
    upward = sorted(range(len(heights)), key=lambda place: -heights[place])
    for below, place in pairwise(upward):
        placed[place] = min(placed[place], placed[below] - NAME_GAP)
    least = 0.0
    for place in reversed(upward):
        placed[place] = max(placed[place], least)
        least = placed[place] + NAME_GAP
    return placed


def readable(ticks: Sequence[Tick]) -> list[Tick]:
    """The ticks without the labels that would stand on one before."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= LABEL_WIDTH:
            kept.append(tick)
    return kept
