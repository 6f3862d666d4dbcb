"""`asl-triton recognize`: print the ranked glosses of a few clips."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption, SignerOption, format_box, parse_signer
from asl_triton.cli.terminal import Console
from asl_triton.errors import VideoError
from asl_triton.labels import read_labels
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import DEFAULT_TOP_K, Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure, Outcome, to_json_values

IN_FLIGHT = 4


@with_connection("dictionary", "transport", "send", "model", "local", "server")
def recognize(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Video files with one sign each.")],
    top_k: Annotated[int, typer.Option(min=1, help="How many glosses per clip.")] = DEFAULT_TOP_K,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Rank only the glosses that this file lists, one per line.")
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default="the model's own, if it has one",
            help="Mark answers below this confidence as unsure.",
        ),
    ] = None,
    signer: SignerOption = None,
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """Recognize the sign in one or a few clips, and print the ranked glosses.

    For a folder, or for results in files, use `asl-triton batch`. With --json, each clip is one line: the recognition,
    or the clip's name and the error. Exit code 3: some clips failed; 1: all of them failed.

        asl-triton recognize clip.mp4
        asl-triton recognize clip.mp4 --local --repository model_repository
        asl-triton recognize *.mp4 --top-k 1 --json
    """
    box = parse_signer(signer)
    ranking = Ranking(top_k, read_labels(vocabulary) if vocabulary else None, min_confidence)
    with connection.address() as address:
        make_recognizer = partial(
            connection.make_recognizer, address, IN_FLIGHT, signer=box, find_signer=signer != "off"
        )
        failed = asyncio.run(recognize_and_print(make_recognizer, clips, ranking, as_json))
    if failed:
        raise typer.Exit(1 if failed == len(clips) else 3)


async def recognize_and_print(
    make_recognizer: Callable[[], AsyncRecognizer], clips: Sequence[str], ranking: Ranking, as_json: bool
) -> int:
    """Recognize clips, print each outcome in order as soon as it is known, and return how many failed.

    Raises:
        AslTritonError: the server is down, or has no suitable model.
    """
    failed = 0
    async for outcome in iter_outcomes(make_recognizer, clips, ranking, print_introduction):
        failed += isinstance(outcome, Failure)
        if as_json:
            typer.echo(json.dumps(to_json_values(outcome)))
        else:
            print_outcome(outcome)
    return failed


async def iter_outcomes(
    make_recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[str],
    ranking: Ranking,
    on_model: Callable[[ServedModel], None],
) -> AsyncIterator[Outcome]:
    """Yield the outcomes of clips in order, with a few clips in flight. `on_model` is called first."""
    async with make_recognizer() as recognizer:
        on_model(await recognizer.model())  # so that a server that is down is reported once, not for each clip

        async def recognize_one(clip: str) -> Outcome:
            try:
                return await recognizer.recognize(
                    clip, top_k=ranking.top_k, vocabulary=ranking.vocabulary, min_confidence=ranking.min_confidence
                )
            except VideoError as exc:
                return Failure(clip, str(exc))

        tasks = [asyncio.create_task(recognize_one(clip)) for clip in clips]
        try:
            for task in tasks:
                yield await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def print_introduction(served: ServedModel) -> None:
    """Print the model's purpose on standard error, if its card has one."""
    if served.introduction:
        Console(stderr=True).print(f"[dim]{escape(served.introduction)}[/]", highlight=False, soft_wrap=True)


def print_outcome(outcome: Outcome) -> None:
    """Print a clip's glosses, best first, and its warnings, or why it failed."""
    if isinstance(outcome, Failure):
        Console(stderr=True).print(f"[red]failed[/] {escape(outcome.error)}", soft_wrap=True)
        return
    console = Console()
    unsure = " (unsure)" if outcome.unsure else ""
    console.print(f"[bold]{escape(outcome.video)}[/]{unsure}", highlight=False, soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim")
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    for prediction in outcome.predictions:
        table.add_row(str(prediction.rank), escape(prediction.gloss), f"{prediction.confidence:.1%}")
    console.print(table)
    if outcome.signer is not None:
        console.print(format_box(outcome.signer), style="dim", highlight=False)
    for warning in outcome.warnings:
        console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False, soft_wrap=True)
