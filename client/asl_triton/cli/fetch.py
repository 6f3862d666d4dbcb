"""`asl-triton fetch`: published weights become a bundle on this machine."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import progress
from rich.console import Console
from rich.table import Table

from asl_triton.cli.options import JsonOption
from asl_triton.extras import require_extra

if TYPE_CHECKING:
    from asl_triton_export.pretrained.catalog import Weights

OnBytes = Callable[[str, int, int | None], None]
OnStep = Callable[[str], None]


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="Which weights: a name from the list.", show_default="list them")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The bundle's folder.", show_default="weights/NAME")] = None,
    force: Annotated[bool, typer.Option("--force", help="Download again, and replace a bundle that is there.")] = False,
    list_them: Annotated[bool, typer.Option("--list", help="Show what can be fetched.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Download published weights, check them, leave a bundle for `asl-triton export`.

    A bundle is a folder of weights.pt, labels.txt, preset.json (how the weights
    were trained) and README.txt (where they come from, their license and their
    published accuracy). It appears only when it is complete and was checked.

    Downloads go to .downloads beside it. One that broke off goes on from there
    when the command runs again; a file that you downloaded with a browser and
    put there is taken as it is. The weights of WLASL are one archive: a second
    of them needs no second download.

        asl-triton fetch --list
        asl-triton fetch bsl1k-wlasl2000
        asl-triton export weights/bsl1k-wlasl2000
    """
    with require_extra("export"):
        from asl_triton_export.pretrained.catalog import PUBLISHED

    console = Console()
    if name is None or list_them:
        listed = [PUBLISHED[name]] if name in PUBLISHED else list(PUBLISHED.values())
        if as_json:
            print(json.dumps([format_row(weights) for weights in listed], indent=2))
        else:
            console.print(make_table(listed))
            console.print(f"Next: asl-triton fetch {listed[0].name}", soft_wrap=True)
        return

    with require_extra("export"):
        from asl_triton_export.pretrained.fetch import fetch as fetch_bundle

    with format_published(Console(stderr=True)) as (on_bytes, on_step):
        fetched = fetch_bundle(name, to, force=force, on_bytes=on_bytes, on_step=on_step)
    if as_json:
        archive = str(fetched.archive) if fetched.archive else None
        print(json.dumps({"folder": str(fetched.folder), "is_new": fetched.is_new, "archive": archive}))
        return
    state = "is ready" if fetched.is_new else "was there already (--force downloads it again)"
    lines = [
        f"{name} {state}: {fetched.weights.num_classes} glosses, in {fetched.folder}",
        f"License: {fetched.weights.terms}",
    ]
    if fetched.archive:
        lines.append(f"The archive is kept for the other weights in it, and may be deleted: {fetched.archive}")
    lines.append(f"Next: asl-triton export {fetched.folder}")
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def format_row(weights: "Weights") -> dict[str, str | int | float | None]:
    """What a program may want to know of published weights."""
    return {
        "name": weights.name,
        "num_classes": weights.num_classes,
        "preset": weights.preset,
        "top1": weights.accuracy.top1,
        "top5": weights.accuracy.top5,
        "top10": weights.accuracy.top10,
        "num_bytes": weights.checkpoint.num_bytes,
        "url": weights.checkpoint.url,
        "license": weights.license,
        "terms": weights.terms,
        "homepage": weights.homepage,
    }


def make_table(listed: list["Weights"]) -> Table:
    """Published weights, a row each."""
    table = Table(
        title="Published weights",
        caption="Accuracy: percent of the clips of each vocabulary's test split, as published",
    )
    for heading in ("name", "glosses", "top-1", "top-5", "top-10", "download", "license"):
        table.add_column(
            heading, justify="left" if heading in ("name", "license") else "right", no_wrap=heading == "name"
        )
    for number, weights in enumerate(listed):
        accuracy, size = weights.accuracy, weights.checkpoint.num_bytes
        table.add_row(
            f"[bold]{weights.name}[/]\n(recommended)" if number == 0 and len(listed) > 1 else weights.name,
            str(weights.num_classes),
            f"{accuracy.top1:.2f}",
            f"{accuracy.top5:.2f}",
            "" if accuracy.top10 is None else f"{accuracy.top10:.2f}",
            "" if size is None else f"{size / 1e6:.0f} MB",
            weights.license,
        )
    return table


@contextmanager
def format_published(console: Console) -> Iterator[tuple[OnBytes, OnStep]]:
    """Two functions that show how far a download is: as a bar on a terminal, else as a line for each tenth."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def on_bytes(filename: str, done: int, total: int | None) -> None:
            if filename not in tasks:
                tasks[filename] = bars.add_task(filename, total=total, completed=done)
            bars.update(tasks[filename], completed=done, total=total)

        yield on_bytes, lambda step: bars.console.print(step, markup=False, highlight=False)


def _lines(console: Console) -> tuple[OnBytes, OnStep]:
    tenths: dict[str, int] = {}

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    def on_bytes(filename: str, done: int, total: int | None) -> None:
        if filename not in tenths:
            say(f"Downloading {filename}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
        tenth = 10 * done // total if total else 0
        if tenth > tenths.setdefault(filename, 0):
            tenths[filename] = tenth
            say(f"{filename}: {tenth * 10} %")

    return on_bytes, say
