"""`asl-triton batch`: a folder of clips becomes tables of glosses."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asl_triton import batch as clips
from asl_triton.batch import Summary
from asl_triton.commands.connection import Connection
from asl_triton.commands.options import (
    ApiKeyOption,
    JsonOption,
    LocalOption,
    ModelOption,
    RepositoryOption,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    TlsOption,
)
from asl_triton.commands.progress import ROWS_SHOWN, ClipProgress
from asl_triton.labels import read_labels
from asl_triton.predictions import DEFAULT_TOP_K, Ranking, Recognition
from asl_triton.sinks import SINKS
from asl_triton.transport import BULK_PRIORITY, DEFAULT_IN_FLIGHT, DEFAULT_SERVER, DEFAULT_TIMEOUT_S, Security


def batch(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of clips, searched with its sub-folders; or one clip.")
    ],
    output: Annotated[Path, typer.Option(help="Where the results go; made if it is not there.")] = Path("results"),
    format: Annotated[str, typer.Option(help=f"What to write, with commas between: {', '.join(SINKS)}.")] = "csv,jsonl",
    glob: Annotated[
        str | None, typer.Option(help="Take the files that match this pattern, instead of all videos.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many glosses a clip.")] = DEFAULT_TOP_K,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Rank only the glosses that this file lists, one a line.")
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Below it the best gloss is marked as unsure.")
    ] = 0.0,
    in_flight: Annotated[
        int, typer.Option(min=1, max=256, help="How many requests may be under way at once.")
    ] = DEFAULT_IN_FLIGHT,
    model: ModelOption = None,
    local: LocalOption = False,
    repository: RepositoryOption = Path("model_repository"),
    server: ServerOption = DEFAULT_SERVER,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    api_key: ApiKeyOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Recognise the sign in each clip of a folder, and write tables of ranked glosses.

    Writes OUTPUT/results.FORMAT for each format; OUTPUT/errors.jsonl says which clips could not be read, and why.
    Exit code 3: some clips failed, the others are written.

        asl-triton batch clips/ --output results --format csv,parquet
        asl-triton batch clips/ --local --top-k 5 --min-confidence 0.3
    """
    formats = parse_formats(format)
    ranking = Ranking(top_k, read_labels(vocabulary) if vocabulary else None, min_confidence)
    connection = Connection(server, Security(tls, tls_ca, tls_cert, tls_key, api_key), timeout, local, repository)
    found = clips.find_clips(folder, glob)
    with connection.address() as address, ClipProgress(len(found)) as progress:
        summary = clips.run(
            lambda: connection.recognizer(address, model, in_flight, BULK_PRIORITY),
            found,
            output,
            formats,
            ranking,
            clips_at_once=in_flight,
            on_outcome=progress.advance,
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(summary), default=str))
    else:
        show(summary, progress.shown, Console())
    if summary.recognised == 0:
        raise typer.Exit(1)
    raise typer.Exit(3 if summary.failures or summary.not_tried else 0)


def parse_formats(formats: str) -> list[str]:
    """The formats of `--format`, each once."""
    names = list(dict.fromkeys(name.strip().lower() for name in formats.split(",") if name.strip()))
    unknown = [name for name in names if name not in SINKS]
    if unknown or not names:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is not among {', '.join(SINKS)}", param_hint="--format"
        )
    return names


def show(summary: Summary, recognitions: list[Recognition], console: Console) -> None:
    """The best gloss of each clip, the clips that failed, and where the results are."""
    table = Table(box=None, pad_edge=False)
    table.add_column("clip", overflow="fold")
    table.add_column("best gloss")
    table.add_column("confidence", justify="right")
    table.add_column("then", style="dim")
    for recognition in recognitions:
        unsure = " (unsure)" if recognition.unsure else ""
        table.add_row(
            escape(recognition.video),
            escape(recognition.gloss) + unsure,
            f"{recognition.confidence:.1%}",
            escape(", ".join(p.gloss for p in recognition.predictions[1:4])),
        )
    if recognitions:
        console.print(table)
    if summary.recognised > len(recognitions):
        console.print(f"... and {summary.recognised - len(recognitions)} more, in the files below")
    for failure in summary.failures[:ROWS_SHOWN]:
        console.print(f"[red]failed[/] {escape(failure.video)}: {escape(failure.error)}", soft_wrap=True)
    warned = [(r.video, warning) for r in recognitions for warning in r.warnings]
    for video, warning in warned:
        console.print(f"[yellow]warning[/] {escape(video)}: {escape(warning)}", soft_wrap=True)
    if summary.stopped:
        console.print(f"[red]stopped[/] before the end: {escape(summary.stopped)}", soft_wrap=True)
    parts = [f"{summary.recognised} recognised"]
    parts += [f"{len(summary.failures)} failed"] if summary.failures else []
    parts += [f"{summary.not_tried} not tried"] if summary.not_tried else []
    rate = summary.recognised / summary.seconds
    console.print(f"{', '.join(parts)} in {summary.seconds:.1f} s ({rate:.2f} clips a second)")
    console.print("written: " + escape(", ".join(str(path) for path in summary.files)), soft_wrap=True)
