"""`asl-triton recognize`: the ranked glosses of a few clips, on the terminal."""

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
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Video files, each of one sign.")],
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
            help="Mark an answer as unsure below this confidence.",
        ),
    ] = None,
    signer: SignerOption = None,
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """Recognize the sign in one or a few clips, and print the ranked glosses.

    For a folder, and for results in files, use `asl-triton batch`. With --json, each clip is one line: the recognition,
    or its name and the error. Exit code 3: some clips failed; 1: all of them.

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
    """Recognize clips, and print each outcome as soon as it and those before it are known: how many failed.

    Raises:
        AslTritonError: the server is away, or serves nothing that fits.
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
    """The outcomes of clips, in their order; a few clips are under way at once. `on_model` gets the model first."""
    async with make_recognizer() as recognizer:
        on_model(await recognizer.model())  # a server that is away is reported once, not for each clip

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
    """Say on standard error what the model is good for, if it says so."""
    if served.introduction:
        Console(stderr=True).print(f"[dim]{escape(served.introduction)}[/]", highlight=False, soft_wrap=True)


def print_outcome(outcome: Outcome) -> None:
    """Print the glosses of a clip, best first, and what is wrong with it."""
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
