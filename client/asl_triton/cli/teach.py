"""`asl-triton teach`: teach signs from a few clips each, without training."""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption, SignerOption, parse_signer
from asl_triton.cli.progress import ROWS_SHOWN, ClipProgress
from asl_triton.cli.terminal import Console
from asl_triton.errors import DictionaryError, VideoError
from asl_triton.files import check_writable
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure
from asl_triton.teaching.dictionary import SignDictionary, check_gloss
from asl_triton.teaching.embedding import Embedding
from asl_triton.teaching.report import SignReport, report_signs
from asl_triton.transport.triton_grpc import BULK_PRIORITY
from asl_triton.video.discovery import Clip, find_clips

IN_FLIGHT = 8


@dataclasses.dataclass(frozen=True)
class ShownClip:
    """A clip of a sign and its embedding."""

    video: str
    gloss: str
    embedding: Embedding


@with_connection("transport", "model", "local", "server")
def teach(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="A folder with one subfolder of clips per sign, named after the sign: coffee/1.mp4.",
        ),
    ] = None,
    dictionary: Annotated[
        Path, typer.Option(help="The file of taught signs. It is created if missing; otherwise, signs are added to it.")
    ] = Path("signs.safetensors"),
    forget: Annotated[
        list[str] | None, typer.Option(metavar="SIGN", help="Remove a sign first; may be given several times.")
    ] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Add the signs in another dictionary of the same model.")
    ] = None,
    signer: SignerOption = None,
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """Teach signs by example, with one or more clips of each and no training.

    The clips' embeddings go to a dictionary file, which `recognize`, `batch`, `watch`, `evaluate` and `ui` accept as
    --dictionary. The table shows how well the model can tell the signs apart: each example is tested as if it had not
    been taught. Use at least three examples per sign, by different people if others will use the dictionary. Running
    the same command again adds only new clips. Without DIR, it only prints the table. Exit code 3: some clips could not
    be read.

        asl-triton teach my-signs/ --dictionary mine.safetensors
        asl-triton recognize clip.mp4 --dictionary mine.safetensors
        asl-triton teach --dictionary mine.safetensors --forget coffee
    """
    if folder is None and not dictionary.exists():
        raise DictionaryError(
            f"{dictionary} does not exist: to create it, name a folder that has one subfolder of clips per sign"
        )
    signs = SignDictionary.load(dictionary) if dictionary.exists() else None
    clips = find_shown_clips(folder) if folder is not None else []
    check_writable(dictionary.absolute().parent)
    failures: list[Failure] = []
    with saving(dictionary, lambda: signs):
        for gloss in forget or ():
            if signs is None:
                raise DictionaryError(f"{dictionary} does not exist, so it has no {gloss!r} to remove")
            signs.remove(gloss)
        for path in merge or ():
            other = SignDictionary.load(path)
            signs = signs or SignDictionary(other.model)
            signs.merge(other)
        if clips:
            box = parse_signer(signer)
            with connection.address() as address, ClipProgress[Any](len(clips)) as progress:
                recognizer = connection.make_recognizer(
                    address, IN_FLIGHT, signer=box, find_signer=signer != "off", priority=BULK_PRIORITY
                )
                served = asyncio.run(connection.read_model(address))
                signs = signs or SignDictionary(served)
                signs.check_model(served, address)
                failures = asyncio.run(show_clips(recognizer, clips, signs, progress))
    assert signs is not None
    reports = report_signs(signs) if len(signs) else ()
    if as_json:
        typer.echo(json.dumps(to_json(dictionary, reports, failures)))
    else:
        print_reports(dictionary, reports, failures)
    if failures:
        raise typer.Exit(1 if len(failures) == len(clips) else 3)


@contextmanager
def saving(path: Path, get: Callable[[], SignDictionary | None]) -> Iterator[None]:
    """Save the dictionary when the block ends, even if Ctrl-C or a lost server ends it early."""
    try:
        yield
    finally:
        if (signs := get()) is not None:
            signs.save(path)


def find_shown_clips(folder: Path) -> list[tuple[str, Clip]]:
    """Find the clips in a folder's subfolders, and return each with its sign, which is the subfolder's name.

    Raises:
        AslTritonError: there are no clips, or some are not in a sign's subfolder.
    """
    clips = find_clips(folder)
    loose = [clip.name for clip in clips if "/" not in clip.name]
    if loose:
        raise DictionaryError(
            f"{loose[0]} is not in a sign's folder: put the clips of each sign in a folder named after it, such as "
            f"{folder}/coffee/{loose[0]}"
        )
    return [(check_gloss(clip.name.split("/")[0]), clip) for clip in clips]


async def show_clips(
    recognizer: AsyncRecognizer,
    clips: Sequence[tuple[str, Clip]],
    signs: SignDictionary,
    progress: ClipProgress[Any],
) -> list[Failure]:
    """Add clips to a dictionary, except those that it already has by name. Returns the clips that failed.

    Raises:
        AslTritonError: the server is down.
    """
    failures: list[Failure] = []
    async with recognizer:
        known = {(example.gloss, example.source) for example in signs.examples}
        missing = [(gloss, clip) for gloss, clip in clips if (gloss, clip.name) not in known]
        progress.skip(len(clips) - len(missing))
        room = asyncio.Semaphore(IN_FLIGHT)

        async def embed(gloss: str, clip: Clip) -> ShownClip | Failure:
            async with room:
                try:
                    return ShownClip(clip.name, gloss, await recognizer.embed(clip.path, name=clip.name))
                except VideoError as exc:
                    return Failure(clip.name, str(exc))

        tasks = [asyncio.create_task(embed(*each)) for each in missing]
        try:
            for task in tasks:  # in the order of the folder, so that the same clips make the same file
                outcome = await task
                if isinstance(outcome, ShownClip):
                    try:
                        signs.add(outcome.gloss, outcome.embedding, source=outcome.video)
                    except DictionaryError as exc:
                        outcome = Failure(outcome.video, str(exc))
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                progress.advance(outcome)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return failures


def to_json(path: Path, reports: Sequence[SignReport], failures: Sequence[Failure]) -> dict[str, object]:
    """Return the values for --json."""
    return {
        "dictionary": str(path),
        "signs": [{**dataclasses.asdict(report), "advice": report.advice} for report in reports],
        "failures": [{"video": failure.video, "error": failure.error} for failure in failures],
    }


def print_reports(path: Path, reports: Sequence[SignReport], failures: Sequence[Failure]) -> None:
    """Print what is known about each sign, starting with those that need attention."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    for name, justify in (("sign", "left"), ("examples", "right"), ("recognized", "right"), ("agreement", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("what would help", overflow="fold", style="dim")
    for report in sorted(reports, key=lambda report: not report.advice)[:ROWS_SHOWN]:
        recognized = "" if report.recognized is None else f"{report.recognized} of {report.examples}"
        agreement = "" if report.agreement is None else f"{report.agreement:.0%}"
        table.add_row(escape(report.gloss), str(report.examples), recognized, agreement, escape(report.advice))
    if reports:
        console.print(table)
    if len(reports) > ROWS_SHOWN:
        console.print(f"... and {len(reports) - ROWS_SHOWN:,} more signs (--json lists all)")
    for failure in failures[:ROWS_SHOWN]:
        console.print(f"[red]failed[/] {escape(failure.error)}", soft_wrap=True)
    if len(failures) > ROWS_SHOWN:
        console.print(f"... and {len(failures) - ROWS_SHOWN:,} more")
    examples = sum(report.examples for report in reports)
    console.print(
        escape(f"written: {path}, {len(reports):,} signs with {examples:,} examples. Next: asl-triton recognize CLIP ")
        + escape(f"--dictionary {path}"),
        soft_wrap=True,
        highlight=False,
    )
