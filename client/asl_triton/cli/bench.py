"""`asl-triton bench`: how much load a served model bears."""

import json
import math
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asl_triton.bench.load import Arrivals, ClosedLoop, Loop, OpenLoop
from asl_triton.bench.measurement import Level, Rules, measure_all
from asl_triton.bench.page import render
from asl_triton.bench.report import Figures, Report, rounded, written
from asl_triton.bench.sources import DEFAULT_FRAMES, Source, clips_source, frames_source
from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption
from asl_triton.cli.progress import LINE_EVERY_S
from asl_triton.files import check_writable
from asl_triton.video.discovery import find_clips
from asl_triton.writers.html import load_templates

DEFAULT_LEVELS = "1,2,4,8"
ERRORS_SHOWN = 10
MOST_IN_FLIGHT = 256  # gRPC cancels some where more are


@with_connection("model", "local", "server", "transport")
def bench(
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: so many clips always in flight; several with commas between.",
            show_default=f"{DEFAULT_LEVELS} without --rate",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: so many clips due a second, however late the answers; several with commas between."
        ),
    ] = None,
    arrivals: Annotated[
        Arrivals,
        typer.Option(help="When the clips of a rate are due: at equal distances, or at random as callers come."),
    ] = "constant",
    in_flight: Annotated[
        int, typer.Option(min=1, max=MOST_IN_FLIGHT, help="The most under way at a rate; more are not started.")
    ] = 32,
    frames: Annotated[
        int | None, typer.Option(min=1, help="How many random frames a clip.", show_default=str(DEFAULT_FRAMES))
    ] = None,
    clips: Annotated[
        Path | None,
        typer.Option(help="Instead of random frames, the clips of this folder: decoded and cropped while measured."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long a window lasts, at the least.")] = 5.0,
    stable: Annotated[
        str, typer.Option(help="How far the last three windows may differ, in throughput and in mean latency.")
    ] = "10%",
    max_windows: Annotated[
        int, typer.Option(min=3, help="After so many windows that do not agree: not stable.")
    ] = Rules.max_windows,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of each load that are not measured.")] = 1.0,
    output: Annotated[Path, typer.Option(help="Where the report goes; made if it is not there.")] = Path("results"),
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """Put load on a served model: throughput and latency, beside the server's queue, compute and batches.

    Each load is warmed up, then measured in windows until three in a row agree, as perf_analyzer does. A request that
    fails is not sent again, but counted. Writes OUTPUT/bench.json and OUTPUT/bench.html, one page that needs nothing
    else. Exit code 3: some clips failed or were not started, or Ctrl-C ended it early.

        asl-triton bench --local
        asl-triton bench --server triton:8001 --concurrency 1,4,16,64
        asl-triton bench --rate 5,10,20 --arrivals poisson --seconds 20
        asl-triton bench --clips clips/ --concurrency 1,2,4
    """
    loops = parse_loops(concurrency, rate, arrivals, in_flight)
    rules = Rules(seconds, warm_up, parse_share(stable), max_windows)
    if clips is not None and frames is not None:
        raise typer.BadParameter("clips have frames of their own: leave one out.", param_hint="--frames, --clips")
    found = find_clips(clips) if clips is not None else []
    most = max(loop.in_flight for loop in loops)

    def make_source() -> AbstractAsyncContextManager[Source]:
        asked = connection.make_transport(address, most, resend=False)
        if found:
            return clips_source(asked, connection.model, found, most)
        return frames_source(asked, connection.model, frames or DEFAULT_FRAMES)

    check_writable(output)  # these fail now, not when everything is measured
    load_templates()
    with connection.address() as address, LoadProgress() as progress:
        measured = measure_all(make_source, loops, rules, progress.show)
    report = Report(address, rules, measured)
    files = written(report, render(report), output)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        show(report, files, Console())
    whole = not (measured.stopped or report.errors or any(figures.not_started for figures in report.figures))
    raise typer.Exit(0 if whole else 3)


def parse_loops(concurrency: str | None, rate: str | None, arrivals: Arrivals, in_flight: int) -> list[Loop]:
    """The loads of `--concurrency`, from the least, then those of `--rate`."""
    if concurrency is None and rate is None:
        concurrency = DEFAULT_LEVELS
    levels = parse_numbers(concurrency, "--concurrency")
    if any(level != int(level) or level > MOST_IN_FLIGHT for level in levels):
        raise typer.BadParameter(f"takes whole numbers up to {MOST_IN_FLIGHT}", param_hint="--concurrency")
    rates = parse_numbers(rate, "--rate")
    return [ClosedLoop(int(level)) for level in levels] + [OpenLoop(each, arrivals, in_flight) for each in rates]


def parse_numbers(text: str | None, option: str) -> list[float]:
    """Positive numbers with commas between, each once, in order."""
    if text is None:
        return []
    try:
        numbers = sorted({float(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise typer.BadParameter(
            f"{text!r} should be numbers above 0 with commas between, such as 1,2,4", param_hint=option
        )
    return numbers


def parse_share(text: str) -> float:
    """A percentage, as a share."""
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not 0 < percent <= 100:
        raise typer.BadParameter(f"{text!r} should be a percentage, such as 10%", param_hint="--stable")
    return percent / 100


class LoadProgress:
    """The load under way, on standard error: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("Warming up")
        self._line_s = time.monotonic()

    def show(self, level: Level) -> None:
        """What the newest window says."""
        window = level.windows[-1]
        said = f"{level.loop.label}: {rounded(window.throughput)} clips a second in window {len(level.windows)}"
        said += ", stable" if level.stable else ""
        self._status.update(said)
        if not self._console.is_terminal and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.monotonic()
            self._console.print(said)

    def __enter__(self) -> "LoadProgress":
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._status.stop()


def show(report: Report, files: tuple[Path, ...], console: Console) -> None:
    """The figures, the knee, what failed, and where the report is."""
    measured = report.measured
    console.print(f"{escape(measured.model.name)} on {escape(report.address)}: {measured.what}", highlight=False)
    console.print(table(report.figures))
    if report.knee_told:
        console.print(report.knee_told, highlight=False)
    for error, count in report.errors.most_common(ERRORS_SHOWN):
        console.print(f"[red]failed[/] {count:,}: {escape(error)}", soft_wrap=True, highlight=False)
    if len(report.errors) > ERRORS_SHOWN:
        console.print(f"... and {len(report.errors) - ERRORS_SHOWN:,} other reasons, in the files below")
    for warning in report.warnings:
        console.print(f"[yellow]warning[/] {escape(warning)}", soft_wrap=True, highlight=False)
    if measured.stopped:
        console.print(f"[red]stopped[/] before the end: {escape(measured.stopped)}", soft_wrap=True)
    console.print("written: " + escape(", ".join(str(path) for path in files)), soft_wrap=True)


def table(levels: tuple[Figures, ...]) -> Table:
    """A row a load. Columns of what did not happen are left out."""
    failed, not_started = any(f.failed for f in levels), any(f.not_started for f in levels)
    columns = ["clips/s", "p50", "p90", "p95", "p99", "queue", "compute", "batch", "kB sent"]
    columns += ["failed"] * failed + ["not started"] * not_started
    caption = "milliseconds; queue, compute and batch as the server counts them"
    shown = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    shown.add_column("load", no_wrap=True)
    for column in columns:
        shown.add_column(column, justify="right")
    for f in levels:
        latency, server = f.latency_s, f.server
        seconds = (latency.p50, latency.p90, latency.p95, latency.p99, server.queue_s, server.compute_s)
        cells = [rounded(f.throughput), *(rounded(1000 * each) for each in seconds)]
        cells += [f"{server.batch_size:.2f}", rounded(f.sent_bytes / 1000)]
        cells += [f"{f.failed:,}"] * failed + [f"{f.not_started:,}"] * not_started
        shown.add_row(f.loop.label, *cells)
    return shown
