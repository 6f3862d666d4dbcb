"""`asl-triton batch`: recognize a folder of clips and write tables of glosses."""

import json
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from asl_triton.batch.concurrency import MAX_IN_FLIGHT, ConcurrencyReport
from asl_triton.batch.journal import JOURNAL, PARTS
from asl_triton.batch.runner import BatchOptions, RecognitionBatch, Summary
from asl_triton.batch.timelines import TimelineBatch, TimelineOptions
from asl_triton.batch.workers import DEFAULT_WAIT_S
from asl_triton.cli.batch_options import (
    DecodersOption,
    DecodeTimeoutOption,
    DecodingOption,
    FreshOption,
    HashOption,
    InFlightOption,
    MaxFailuresOption,
    RawOption,
    WaitOption,
)
from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption, SignerOption, parse_signer
from asl_triton.cli.progress import ROWS_SHOWN, BrokenPipeSafeConsole, ClipProgress
from asl_triton.cli.ray_options import (
    CLIPS_PER_ACTOR,
    EngineOption,
    RayAddressOption,
    RayWorkersOption,
    check_engine,
    make_ray_batch,
)
from asl_triton.cli.terminal import Console
from asl_triton.decoding.factory import DEFAULT_DECODE_TIMEOUT_S, SAFEST
from asl_triton.errors import AslTritonError
from asl_triton.labels import read_labels
from asl_triton.postprocessing.ranking import DEFAULT_TOP_K, Ranking
from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.results import Recognition, Timeline
from asl_triton.transport.triton_grpc import BULK_PRIORITY
from asl_triton.video.discovery import find_clips, find_skipped
from asl_triton.writers.tables import SINKS, check_installed
from asl_triton.writers.timelines import TIMELINES

if TYPE_CHECKING:
    from asl_triton.batch.ray.runner import RayBatch

GLOSSES_SHOWN = 6  # of a timeline
SKIPPED_SHOWN = 5  # files that are not videos


@with_connection("dictionary", "transport", "send", "model", "local", "server")
def batch(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="A folder of clips, searched with its subfolders (except hidden ones and links); or one clip.",
        ),
    ],
    output: Annotated[str, typer.Option(help="The folder for the results, created if missing.")] = "results",
    format: Annotated[
        str | None,
        typer.Option(
            show_default="csv,jsonl; with --engine ray parquet",
            help=f"What to write, separated by commas: {', '.join(SINKS)}; with --timeline {', '.join(TIMELINES)}.",
        ),
    ] = None,
    glob: Annotated[
        str | None,
        typer.Option(help="Use the files that match this pattern, such as '*_front.mp4', instead of all videos."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, show_default=str(DEFAULT_TOP_K), help="How many glosses per clip.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Rank only the glosses that this file lists, one per line.")
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default=f"the model's own, if it has one; with --timeline {Segmentation.min_confidence:g}",
            help="Mark answers below this confidence as unsure, and leave them out of timelines.",
        ),
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="For long videos: write when each sign is signed, in one file per video.")
    ] = False,
    window: Annotated[
        int | None, typer.Option(min=1, show_default="the model's", help="With --timeline: frames per window.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, show_default="the model's", help="With --timeline: frames from one window to the next."),
    ] = None,
    signer: SignerOption = None,
    in_flight: InFlightOption = None,
    fresh: FreshOption = False,
    by_content: HashOption = False,
    wait: WaitOption = None,
    max_failures: MaxFailuresOption = None,
    decoding: DecodingOption = SAFEST,
    decoders: DecodersOption = None,
    decode_timeout: DecodeTimeoutOption = DEFAULT_DECODE_TIMEOUT_S,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    ray_workers: RayWorkersOption = None,
    raw: RawOption = False,
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """Recognize the sign in each clip of a folder, and write tables of ranked glosses.

    Writes OUTPUT/results.FORMAT for each format. OUTPUT/errors.jsonl lists the clips that failed, and why.
    With --timeline, writes OUTPUT/CLIP.FORMAT for each clip, with a row, cue or annotation for each sign found in it.
    Exit code 3: some clips failed or were not tried; the others were written.

    Run the same command again to do only what is missing or has changed: OUTPUT/journal.jsonl keeps the rest. Ctrl-C or
    SIGTERM finishes the clips in flight and writes the results; a second one stops at once.

        asl-triton batch clips/ --output results --format csv,parquet
        asl-triton batch clips/ --local --top-k 5 --min-confidence 0.3
        asl-triton batch clips/ --server gpu.example.org:8001 --send auto
        asl-triton batch films/ --timeline --format vtt,eaf
        asl-triton batch s3://archive/clips --output s3://archive/glosses --engine ray --ray-address auto
    """
    for place, named in ((folder, "DIR"), (output, "--output")):
        if not place:
            raise typer.BadParameter("it is empty: name a folder, such as . for the current one", param_hint=named)
    check_engine(engine, (folder, output), timeline, by_content, connection.local, (ray_address, ray_workers))
    on_ray = engine == "ray"
    formats = parse_formats(format or ("parquet" if on_ray else "csv,jsonl"), TIMELINES if timeline else SINKS)
    check_installed(formats)
    glosses = read_labels(vocabulary) if vocabulary else None
    timeline_options = parse_timeline_options(timeline, min_confidence, glosses, window, stride, top_k)
    if timeline and connection.send == "video":
        raise typer.BadParameter("timelines are made from frames: remove --send", param_hint="--send")
    ranking = Ranking(top_k or DEFAULT_TOP_K, glosses, min_confidence)
    wait_s = (0.0 if connection.local else DEFAULT_WAIT_S) if wait is None else wait
    box = parse_signer(signer)
    options = BatchOptions(wait_s, max_failures, in_flight, by_content, fresh, raw)
    run: RecognitionBatch | TimelineBatch | RayBatch
    if on_ray:
        run, found = make_ray_batch(folder, output, glob, formats, ranking, options, ray_address, ray_workers)
    else:
        clips = find_clips(Path(folder), glob)
        found = len(clips)
        if timeline_options:
            run = TimelineBatch(clips, Path(output), formats, timeline_options, options)
        else:
            run = RecognitionBatch(clips, Path(output), formats, ranking, options)
    with connection.address() as address, ClipProgress[Any](found) as run.observer:
        make_recognizer = partial(
            connection.make_recognizer,
            address,
            in_flight or (CLIPS_PER_ACTOR if on_ray else MAX_IN_FLIGHT),
            priority=BULK_PRIORITY,
            signer=box,
            find_signer=signer != "off",
            decoding=decoding,
            decoders=decoders or (1 if on_ray else None),
            decode_timeout_s=decode_timeout,
        )
        try:
            summary = run.run(make_recognizer)
        except KeyboardInterrupt as exc:
            raise AslTritonError(f"{str(exc) or 'interrupted'}: no clip was finished") from exc
    if as_json:
        typer.echo(json.dumps(summary.to_json(), default=str))
    else:
        console = BrokenPipeSafeConsole()
        print_summary(summary, run.observer.shown, f"{output}/{PARTS if '://' in output else JOURNAL}", console)
        if not on_ray and (stale := find_stale_outputs(summary.files, Path(output))):
            console.print(f"not written, left from an earlier run: {escape(', '.join(stale))}", soft_wrap=True)
        if not on_ray and glob is None and (skipped := find_skipped(Path(folder))):
            console.print(describe_skipped(skipped), soft_wrap=True)
    if summary.recognized == 0:
        raise typer.Exit(1)
    raise typer.Exit(3 if summary.failures or summary.not_tried or summary.stopped else 0)


def describe_skipped(names: Sequence[str]) -> str:
    """Say which files of a folder were skipped because they do not have a video extension."""
    more = f", and {len(names) - SKIPPED_SHOWN:,} more" if len(names) > SKIPPED_SHOWN else ""
    return escape(
        f"skipped {len(names):,} {'file' if len(names) == 1 else 'files'} without a video extension (use --glob to "
        f"include others): {', '.join(names[:SKIPPED_SHOWN])}{more}"
    )


def make_recognition_table(recognitions: Sequence[Recognition]) -> Table:
    """Build a table of the best glosses of each clip."""
    table = make_table("clip", "best gloss", "confidence", "then")
    for recognition in recognitions:
        unsure = " (unsure)" if recognition.unsure else ""
        table.add_row(
            escape(recognition.video),
            escape(recognition.gloss) + unsure,
            f"{recognition.confidence:.1%}",
            escape(", ".join(p.gloss for p in recognition.predictions[1:4])),
        )
    return table


def make_timeline_table(timelines: Sequence[Timeline]) -> Table:
    """Build a table of the signs in each video."""
    table = make_table("clip", "signs", "length", "glosses")
    for timeline in timelines:
        glosses = [segment.gloss for segment in timeline.segments]
        table.add_row(
            escape(timeline.video),
            str(len(glosses)),
            f"{timeline.duration_s:.1f} s",
            escape(", ".join(glosses[:GLOSSES_SHOWN])) + (" ..." if len(glosses) > GLOSSES_SHOWN else ""),
        )
    return table


def make_table(*columns: str) -> Table:
    """Build a plain table whose third column is numeric and whose last column is dimmed."""
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns, start=1):
        table.add_column(
            column,
            overflow="fold",
            justify="right" if place == 3 else "left",
            style="dim" if place == len(columns) else None,
        )
    return table


def parse_formats(formats: str, known: Collection[str]) -> list[str]:
    """Parse `--format`. Returns the formats without duplicates."""
    names = list(dict.fromkeys(name.strip().lower() for name in formats.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is not one of {', '.join(known)}", param_hint="--format"
        )
    return names


def parse_timeline_options(
    timeline: bool,
    min_confidence: float | None,
    glosses: tuple[str, ...] | None,
    window: int | None,
    stride: int | None,
    top_k: int | None,
) -> TimelineOptions | None:
    """Build the options for timelines. Returns None without `--timeline`."""
    if not timeline:
        if window is not None or stride is not None:
            raise typer.BadParameter("--window and --stride require --timeline", param_hint="--window")
        return None
    if top_k is not None:
        raise typer.BadParameter("a timeline has one gloss per segment: remove --top-k", param_hint="--top-k")
    if min_confidence is None:
        return TimelineOptions(Segmentation(), glosses, window, stride)
    try:
        return TimelineOptions(Segmentation(min_confidence), glosses, window, stride)
    except AslTritonError as exc:
        raise typer.BadParameter(str(exc), param_hint="--min-confidence") from exc


def print_summary(summary: Summary, shown: Sequence[Any], journal: str, console: Console) -> None:
    """Print the recognized clips, the failed clips, the bottleneck, and where the results are."""
    now = summary.recognized - summary.known_before
    if shown:
        is_timeline = isinstance(shown[0], Timeline)
        console.print(make_timeline_table(shown) if is_timeline else make_recognition_table(shown))
    if now > len(shown):
        console.print(f"... and {now - len(shown):,} more, in the files below")
    for failure in summary.failures[:ROWS_SHOWN]:
        console.print(f"[red]failed[/] {escape(failure.video)}: {escape(failure.error)}", soft_wrap=True)
    if len(summary.failures) > ROWS_SHOWN:
        console.print(f"... and {len(summary.failures) - ROWS_SHOWN:,} more, in the files below")
    warned: dict[str, list[str]] = {}
    for known in shown:
        for warning in known.warnings:
            warned.setdefault(warning, []).append(known.video)
    for warning, videos in warned.items():
        others = f" and {len(videos) - 1} more" if len(videos) > 1 else ""
        console.print(f"[yellow]warning[/] {escape(videos[0])}{others}: {escape(warning)}", soft_wrap=True)
    if summary.stopped:
        console.print(f"[red]stopped[/] before the end: {escape(summary.stopped)}", soft_wrap=True)
    parts = [f"{summary.recognized:,} recognized"]
    if summary.known_before:
        parts[0] += f", {summary.known_before:,} of them in an earlier run (--fresh recognizes them again)"
    rejected = f" ({summary.rejected:,} rejected: the server was too busy)" if summary.rejected else ""
    parts += [f"{len(summary.failures):,} failed{rejected}"] if summary.failures else []
    parts += [f"{summary.not_tried:,} left: run the same command again"] if summary.not_tried else []
    console.print(f"{'; '.join(parts)}. {summary.seconds:.1f} s", highlight=False, soft_wrap=True)
    if summary.concurrency and now:
        console.print(
            escape(format_bottleneck(summary.concurrency, now / summary.seconds)), highlight=False, soft_wrap=True
        )
    files = summary.files or (journal,)
    console.print("written: " + escape(", ".join(str(path) for path in files)), soft_wrap=True)


def find_stale_outputs(files: Sequence[Path | str], output: Path) -> list[str]:
    """Return the tables in a folder that this run did not write, if it wrote others."""
    return sorted(str(path) for path in output.glob("results.*") if path not in files) if files else []


def format_bottleneck(pace: ConcurrencyReport, rate: float) -> str:
    """Describe the bottleneck in a sentence. `rate` is in clips per second."""
    waited_for = "video decoding" if pace.bottleneck == "decoding" else "the server"
    return (
        f"{rate:.2f} clips per second. The bottleneck was {waited_for}: {pace.clips_under_way:.1f} clips were "
        f"in flight on average, and {pace.decoders} decoders were busy {pace.decoders_busy:.0%} of the time"
    )
