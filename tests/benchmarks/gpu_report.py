"""The results of `make bench-gpu`: rows and the settings that follow from them, as JSON and Markdown."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from asl_triton.files import atomic_write

AT_ONCE = (1, 2, 4)  # instances
# Share of the best rate from which a smaller batch, a precision closer to float32, or fewer instances are preferred.
CLOSE_TO_BEST = 0.95
SLOW_FIRST = 2.0  # a warm-up pays if the first forward takes this many times as long as later ones

Status = Literal["ok", "error", "not installed", "skipped"]


@dataclass(frozen=True)
class Figure:
    """One batch size: seconds of its first forward and of later ones, and peak memory beyond the input in MB."""

    batch: int
    first_s: float
    seconds: float  # median
    p95_s: float
    clips_per_s: float
    tflops: float
    peak_mb: float | None = None
    of_matrix_rate: float | None = None
    times_as_trained: float | None = None


@dataclass(frozen=True)
class Row:
    """One way to run the network, or a measurement of another kind with its results in `values`.

    Parity is with the network as trained in float32 without TF32: the largest difference of any logit over all batch
    sizes, and how many clips of the largest batch have the same top-1.
    """

    status: Status
    name: str = ""
    note: str = ""
    took_s: float = 0.0
    precision: str | None = None
    figures: tuple[Figure, ...] = ()
    max_difference: float | None = None
    same_top1: int = 0
    compared: int = 0
    values: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Figure:
        """The figure with the most clips per second."""
        return max(self.figures, key=lambda figure: figure.clips_per_s)


@dataclass(frozen=True)
class Setting:
    """A setting of `config.pbtxt` or of the export, and why."""

    name: str
    value: str
    reason: str


@dataclass
class Report:
    """The results so far, and the folder of their files."""

    folder: Path
    facts: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Add a row and write both files."""
        self.rows.append(row)
        compared = compare_rows(self.rows)
        settings = derive_settings(compared)
        report = {
            "facts": self.facts,
            "rows": [asdict(row) for row in compared],
            "settings": [asdict(setting) for setting in settings],
        }
        with atomic_write(self.folder / "gpu.json") as file:
            file.write(json.dumps(report, indent=1).encode())
        with atomic_write(self.folder / "gpu.md") as file:
            file.write(format_markdown(self.facts, compared, settings).encode())


def compare_rows(rows: list[Row]) -> list[Row]:
    """Add each figure's share of the matrix rate and its ratio to the network as trained."""
    rates = next((row.values for row in rows if row.name == "matrix rate"), {})
    trained = next((row.figures for row in rows if row.name == "as trained, eager, fp32"), ())
    seconds = {figure.batch: figure.seconds for figure in trained}
    return [
        replace(
            row,
            figures=tuple(
                replace(
                    figure,
                    of_matrix_rate=figure.tflops / rates[row.precision] if row.precision in rates else None,
                    times_as_trained=seconds[figure.batch] / figure.seconds if figure.batch in seconds else None,
                )
                for figure in row.figures
            ),
        )
        for row in rows
    ]


def derive_settings(rows: list[Row]) -> list[Setting]:
    """Derive the settings that follow from the rows measured so far."""
    done = {row.name: row for row in rows if row.status == "ok"}
    exported = {
        row.precision: row for name, row in done.items() if name == f"exported, {row.precision}" and row.figures
    }
    settings = []
    chosen = choose_precision(list(exported.values()))
    if chosen is not None:
        settings += [describe_precision(chosen, exported), *choose_batch(chosen)]
        batch = int(settings[1].value)
        if (row := done.get("instances, fp16")) is not None:
            settings.append(choose_instances(row, batch))
        contiguous = done.get(f"exported, contiguous, {chosen.precision}")
        if contiguous is not None and contiguous.figures:
            settings.append(choose_layout(chosen, contiguous))
    if (row := done.get("new lengths, fp16")) is not None:
        settings += [*choose_lengths(row.values)]
    return settings


def choose_precision(exported: list[Row]) -> Row | None:
    """Choose the fastest precision that keeps every top-1. If some are about as fast, the closest to float32 wins."""
    faithful = [row for row in exported if row.max_difference is not None and row.same_top1 == row.compared]
    if not faithful:
        return None
    best_rate = max(row.best.clips_per_s for row in faithful)
    fast = [row for row in faithful if row.best.clips_per_s >= CLOSE_TO_BEST * best_rate]
    return min(fast, key=lambda row: row.max_difference or 0.0)


def describe_precision(chosen: Row, exported: dict[str | None, Row]) -> Setting:
    rates = ", ".join(
        f"{precision} {row.best.clips_per_s:,.1f} ({row.same_top1} of {row.compared} the same top-1)"
        for precision, row in exported.items()
    )
    value = "fp32" if chosen.precision == "tf32" else str(chosen.precision)
    reason = f"Clips per second at the best batch size: {rates}."
    if value == "fp32":
        reason += " A served float32 model runs its convolutions in TF32, which is PyTorch's default."
    return Setting("asl_triton.precision (export --precision)", value, reason)


def choose_batch(chosen: Row) -> list[Setting]:
    """Choose the smallest batch size that is about as fast as the best, and the sizes up to it that need a warm-up."""
    best = chosen.best
    figure = min(
        (f for f in chosen.figures if f.clips_per_s >= CLOSE_TO_BEST * best.clips_per_s), key=lambda f: f.batch
    )
    memory = "" if figure.peak_mb is None else f", {figure.peak_mb:,.0f} MB beyond weights and input"
    reason = (
        f"{figure.clips_per_s:,.1f} clips per second, {figure.clips_per_s / best.clips_per_s:.0%} of the best "
        f"({best.clips_per_s:,.1f} at batch {best.batch}); a forward takes {figure.seconds * 1000:.1f} ms{memory}."
    )
    slow = [f for f in chosen.figures if f.batch <= figure.batch and f.first_s > SLOW_FIRST * f.seconds]
    times = ", ".join(f"batch {f.batch} {f.first_s / f.seconds:.1f}" for f in chosen.figures if f.batch <= figure.batch)
    return [
        Setting("max_batch_size, preferred_batch_size", str(figure.batch), reason),
        Setting(
            "model_warmup, batch sizes",
            ", ".join(str(f.batch) for f in slow) or "1",
            f"First forward over later ones: {times}. Above {SLOW_FIRST:g}, a warm-up pays.",
        ),
    ]


def choose_instances(row: Row, batch: int) -> Setting:
    """Choose the fewest instances that are about as fast as the best."""
    measured = sorted({int(key.split(",")[0].removeprefix("batch ")) for key in row.values})
    nearest = min(measured, key=lambda size: abs(size - batch))
    rates = {count: row.values[f"batch {nearest}, {count} at once"] for count in AT_ONCE}
    count = next(count for count in AT_ONCE if rates[count] >= CLOSE_TO_BEST * max(rates.values()))
    figures = ", ".join(f"{count} {rate:,.1f}" for count, rate in rates.items())
    return Setting("instance_group count", str(count), f"Clips per second at batch {nearest} by instances: {figures}.")


def choose_layout(chosen: Row, contiguous: Row) -> Setting:
    ratio = chosen.best.clips_per_s / contiguous.best.clips_per_s
    return Setting(
        "memory format (in the export)",
        "channels_last_3d" if ratio >= CLOSE_TO_BEST else "contiguous",
        f"channels_last_3d, as exported now, is {ratio:.2f} times as fast as contiguous in {chosen.precision}.",
    )


def choose_lengths(values: dict[str, float]) -> list[Setting]:
    """Decide whether lengths need a warm-up, and whether TorchScript's optimized execution pays."""
    off = {key: values[f"optimized execution off: {key}"] for key in ("first", "second", "later")}
    on = {key: values[f"optimized execution on: {key}"] for key in ("first", "second", "later")}
    ratio = off["first"] / off["later"]
    pays = on["later"] < CLOSE_TO_BEST * off["later"] and on["first"] + on["second"] < SLOW_FIRST * 2 * off["later"]
    return [
        Setting(
            "model_warmup, lengths",
            "one length" if ratio < SLOW_FIRST else "every length that is common",
            f"The first request of a new length takes {off['first']:.1f} ms, later ones {off['later']:.1f} ms.",
        ),
        Setting(
            "DISABLE_OPTIMIZED_EXECUTION",
            "false" if pays else "true",
            f"First, second and later requests of a new length, ms: on {on['first']:.1f}, {on['second']:.1f}, "
            f"{on['later']:.1f}; off {off['first']:.1f}, {off['second']:.1f}, {off['later']:.1f}.",
        ),
    ]


def format_markdown(facts: dict[str, str], rows: list[Row], settings: list[Setting]) -> str:
    """Format the tables for the docs."""
    lines = ["# I3D on a GPU", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    forwards = [row for row in rows if row.figures]
    if forwards:
        lines += ["## Forwards", ""]
        lines += format_table(
            "row|ms, batch 1|most clips/s|at batch|times as trained|TFLOP/s|of matrix rate|MB|difference|same top-1",
            (format_forward(row) for row in forwards),
        )
        batches = sorted({figure.batch for row in forwards for figure in row.figures})
        lines += ["## Clips per second by batch size", ""]
        lines += format_table("row|" + "|".join(map(str, batches)), (format_rates(row, batches) for row in forwards))
    for row in rows:
        if row.values:
            lines += [f"## {row.name}", "", row.note, ""]
            lines += format_table("what|value", ((key, f"{value:,.4g}") for key, value in row.values.items()))
    if settings:
        lines += ["## Settings that follow", ""]
        lines += format_table("setting|value|reason", ((s.name, s.value, s.reason) for s in settings))
    lines += ["## All rows", ""]
    notes = ((row.name, row.status, f"{row.took_s:.1f}", row.note) for row in rows)
    lines += format_table("row|result|took s|note", notes)
    return "\n".join(lines)


def format_table(columns: str, cells: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> list[str]:
    """Format a Markdown table, followed by an empty line."""
    names = columns.split("|")
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *rows, ""]


def format_forward(row: Row) -> tuple[str, ...]:
    best, single = row.best, next((figure for figure in row.figures if figure.batch == 1), None)
    return (
        row.name,
        "" if single is None else f"{single.seconds * 1000:.2f}",
        f"{best.clips_per_s:,.1f}",
        str(best.batch),
        "" if best.times_as_trained is None else f"{best.times_as_trained:.2f}",
        f"{best.tflops:,.2f}",
        "" if best.of_matrix_rate is None else f"{best.of_matrix_rate:.0%}",
        "" if best.peak_mb is None else f"{best.peak_mb:,.0f}",
        "not finite" if row.max_difference is None else f"{row.max_difference:.2g}",
        f"{row.same_top1} of {row.compared}",
    )


def format_rates(row: Row, batches: list[int]) -> tuple[str, ...]:
    rates = {figure.batch: f"{figure.clips_per_s:,.1f}" for figure in row.figures}
    return (row.name, *(rates.get(batch, "") for batch in batches))
