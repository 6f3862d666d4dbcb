"""`asl-triton bench`: measure how much load a served model can take."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from asl_triton.bench.load import Arrivals, ClosedLoop, Loop, OpenLoop
from asl_triton.bench.measurement import DEFAULT_FRAMES, Level, measure_all, open_source
from asl_triton.bench.report import Figures, Report, Rules, format_number
from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption
from asl_triton.cli.progress import LINE_EVERY_S
from asl_triton.cli.terminal import Console
from asl_triton.errors import AslTritonError
from asl_triton.extras import require_extra
from asl_triton.files import check_writable, write_text
from asl_triton.video.discovery import find_clips

DEFAULT_LEVELS = "1,2,4,8"
ERRORS_SHOWN = 10
MOST_IN_FLIGHT = 256  # beyond this, gRPC cancels some


@with_connection("model", "local", "server", "transport")
def bench(
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: keep this many clips in flight. Separate several numbers with commas.",
            show_default=f"{DEFAULT_LEVELS} without --rate",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: start this many clips per second, however late the answers. Separate several numbers "
            "with commas."
        ),
    ] = None,
    arrivals: Annotated[
        Arrivals,
        typer.Option(help="With --rate: start clips at equal intervals, or at random like independent callers."),
    ] = "constant",
    in_flight: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_IN_FLIGHT, help="With --rate: the most clips in flight. Further clips are not started."
        ),
    ] = 32,
    frames: Annotated[
        int | None, typer.Option(min=1, help="How many random frames per clip.", show_default=str(DEFAULT_FRAMES))
    ] = None,
    clips: Annotated[
        Path | None,
        typer.Option(
            help="Use the clips in this folder instead of random frames. Decoding and cropping are measured too."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Minimum length of each window, in seconds.")] = 5.0,
    stable: Annotated[
        str, typer.Option(help="How much the last three windows may differ in throughput and in mean latency.")
    ] = "10%",
    max_windows: Annotated[
        int, typer.Option(min=3, help="Report a load as not stable after this many windows.")
    ] = Rules.max_windows,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of warm-up before each load is measured.")] = 1.0,
    output: Annotated[Path, typer.Option(help="The folder for the report, created if missing.")] = Path("results"),
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    r"""Measure a served model under load: throughput and latency, and the server's queue, compute and batches.

    Each load is warmed up, then measured in windows until three in a row agree, as perf_analyzer does. Failed requests
    are counted but not retried. Writes OUTPUT/bench.json and, with asl-triton\[reports], OUTPUT/bench.html, a
    self-contained page. Exit code 3: some clips failed or were not started, or Ctrl-C ended the run early.

        asl-triton bench --local
        asl-triton bench --server triton:8001 --concurrency 1,4,16,64
        asl-triton bench --rate 5,10,20 --arrivals poisson --seconds 20
        asl-triton bench --clips clips/ --concurrency 1,2,4
    """
    loops = parse_loops(concurrency, rate, arrivals, in_flight)
    rules = Rules(seconds, warm_up, parse_share(stable), max_windows)
    if clips is not None and frames is not None:
        raise typer.BadParameter(
            "clips have their own frames: use only one of these options.", param_hint="--frames, --clips"
        )
    found = find_clips(clips) if clips is not None else []
    most = max(loop.in_flight for loop in loops)
    check_writable(output)  # before measuring, not after
    render_page = load_page_renderer()
    progress = LoadProgress()
    with connection.address() as address, progress.status:
        report = measure_all(
            lambda: open_source(
                connection.make_transport(address, most, resend=False),
                connection.model,
                clips=found,
                num_frames=frames or DEFAULT_FRAMES,
                in_flight=most,
            ),
            loops,
            rules,
            progress.show,
        )
    files = [write_text(output / "bench.json", json.dumps(report.as_json(), indent=1))]
    if render_page is not None:
        files.append(write_text(output / "bench.html", render_page(report)))
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        show(report, files, Console())
    whole = not (report.stopped or report.errors or any(figures.not_started for figures in report.levels))
    raise typer.Exit(0 if whole else 3)


def load_page_renderer() -> Callable[[Report], str] | None:
    """Return the function that renders bench.html, or print what to install and return None."""
    try:
        with require_extra("reports", "bench.html"):
            import jinja2  # noqa: F401

            from asl_triton.bench.page import render_page
    except AslTritonError as exc:
        Console(stderr=True, highlight=False).print(f"[yellow]warning[/] {escape(str(exc))}", soft_wrap=True)
        return None
    return render_page


def parse_loops(concurrency: str | None, rate: str | None, arrivals: Arrivals, in_flight: int) -> list[Loop]:
    """Return the loads of `--concurrency`, lowest first, then those of `--rate`."""
    if concurrency is None and rate is None:
        concurrency = DEFAULT_LEVELS
    levels = parse_numbers(concurrency, "--concurrency")
    if any(level != int(level) or level > MOST_IN_FLIGHT for level in levels):
        raise typer.BadParameter(f"use whole numbers up to {MOST_IN_FLIGHT}", param_hint="--concurrency")
    rates = parse_numbers(rate, "--rate")
    return [ClosedLoop(int(level)) for level in levels] + [OpenLoop(each, arrivals, in_flight) for each in rates]


def parse_numbers(text: str | None, option: str) -> list[float]:
    """Parse comma-separated positive numbers. Returns them sorted and without duplicates."""
    if text is None:
        return []
    try:
        numbers = sorted({float(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise typer.BadParameter(
            f"{text!r} is not a comma-separated list of positive numbers, such as 1,2,4", param_hint=option
        )
    return numbers


def parse_share(text: str) -> float:
    """Parse a percentage. Returns it as a fraction."""
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not 0 < percent <= 100:
        raise typer.BadParameter(f"{text!r} is not a percentage, such as 10%", param_hint="--stable")
    return percent / 100


class LoadProgress:
    """Shows the current load on standard error: one updating line on a terminal, an occasional line elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._line_s = time.monotonic()
        self.status = self._console.status("Warming up")

    def show(self, level: Level) -> None:
        """Show the figures of the newest window."""
        throughput = format_number(level.windows[-1].throughput)
        said = f"{level.loop}: {throughput} clips per second in window {len(level.windows)}"
        said += ", stable" if level.stable else ""
        self.status.update(said)
        if not self._console.is_terminal and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.monotonic()
            self._console.print(said)


def show(report: Report, files: Sequence[Path], console: Console) -> None:
    """Print the figures, the knee, the failures and the files."""
    console.print(f"{escape(report.model.name)} on {escape(report.address)}: {report.asked}", highlight=False)
    for table in build_tables(report.levels, console):
        console.print(table)
    console.print("[dim]times in milliseconds; queue, compute and batch are the server's own figures[/]")
    if report.knee_sentence:
        console.print(report.knee_sentence, highlight=False)
    for error, count in report.errors.most_common(ERRORS_SHOWN):
        console.print(f"[red]failed[/] {count:,}: {escape(error)}", soft_wrap=True, highlight=False)
    if len(report.errors) > ERRORS_SHOWN:
        console.print(f"... and {len(report.errors) - ERRORS_SHOWN:,} other reasons, in the files below")
    for warning in report.warnings:
        console.print(f"[yellow]warning[/] {escape(warning)}", soft_wrap=True, highlight=False)
    if report.stopped:
        console.print(f"[red]stopped[/] before the end: {escape(report.stopped)}", soft_wrap=True)
    console.print("written: " + escape(", ".join(str(path) for path in files)), soft_wrap=True)


def build_tables(levels: Sequence[Figures], console: Console) -> list[Table]:
    """Build a table with one row per load, without columns for failures that did not happen. If the console is too
    narrow for one table, the server's columns go into a second one."""
    names = {"load": [str(level.loop) for level in levels]}
    client = {"clips/s": [format_number(level.throughput) for level in levels]}
    for name in ("p50", "p90", "p95", "p99"):
        client[name] = [format_number(1000 * getattr(level.latency_s, name)) for level in levels]
    server = {
        "queue": [format_number(1000 * level.server.queue_s) for level in levels],
        "compute": [format_number(1000 * level.server.compute_s) for level in levels],
        "batch": [f"{level.server.batch_size:.2f}" for level in levels],
        "kB sent": [format_number(level.sent_bytes / 1000) for level in levels],
    }
    lost = {}
    if any(level.failed for level in levels):
        lost["failed"] = [f"{level.failed:,}" for level in levels]
    if any(level.not_started for level in levels):
        lost["not started"] = [f"{level.not_started:,}" for level in levels]
    table = build_table({**names, **client, **server, **lost})
    if console.measure(table, options=console.options.update_width(sys.maxsize)).maximum <= console.width:
        return [table]
    return [build_table({**names, **client, **lost}), build_table({**names, **server})]


def build_table(columns: Mapping[str, Sequence[str]]) -> Table:
    """Build a table from columns. The first is text, the others are numbers."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        is_load = name == "load"
        table.add_column(
            name, justify="left" if is_load else "right", no_wrap=is_load, overflow="fold", vertical="bottom"
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table
