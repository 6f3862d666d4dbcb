"""`asl-triton fetch`: download published weights as a bundle."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from asl_triton.cli.options import JsonOption
from asl_triton.cli.terminal import Console
from asl_triton.errors import AslTritonError
from asl_triton.extras import require_extra
from asl_triton.signer.person_detector import FOLDER_VARIABLE

if TYPE_CHECKING:
    from asl_triton_export.pretrained.catalog import Weights

SHORT_LANGUAGES = {"American Sign Language": "ASL", "British Sign Language": "BSL"}  # for a table


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="The weights to download, by their name in the list.", show_default="list them")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The bundle's folder.", show_default="weights/NAME")] = None,
    force: Annotated[bool, typer.Option("--force", help="Download again and replace an existing bundle.")] = False,
    labels: Annotated[
        Path | None,
        typer.Option(help="Read the glosses from this file, one per line in class order, instead of downloading them."),
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Show what can be fetched.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Download published weights, check them and create a bundle for `asl-triton export`.

    A bundle is a folder of weights.pt, labels.txt, preset.json (how the weights
    were trained) and README.txt (where they come from, their license and their
    published accuracy). It appears only once it is complete and checked.

    Downloads go to .downloads next to it. If a download breaks off, run the
    command again to resume it. A file that you downloaded with a browser and put
    there is used as it is. The WLASL weights share one archive, which is
    downloaded only once.

    signer-detector is a network that finds signers when no face is detected. It
    goes to the user's cache and is used if OpenVINO is installed. To keep it in
    another folder, set $ASL_TRITON_SIGNER_DETECTOR.

        asl-triton fetch --list
        asl-triton fetch asl-citizen
        asl-triton export weights/asl-citizen
    """
    with require_extra("export"):
        from asl_triton_export.pretrained.catalog import PUBLISHED
        from asl_triton_export.pretrained.fetch import fetch as fetch_bundle
        from asl_triton_export.pretrained.signer_detector import NAME as DETECTOR
        from asl_triton_export.pretrained.signer_detector import TERMS, fetch_detector

    console = Console()
    if name is None or list_them:
        listed = [PUBLISHED[name]] if name in PUBLISHED else list(PUBLISHED.values())
        if as_json:
            print(json.dumps([describe_weights(weights) for weights in listed], indent=2))
        else:
            console.print(make_table(listed))
            if len(listed) > 1:
                console.print(f"To find signers when no face is detected: asl-triton fetch {DETECTOR}", soft_wrap=True)
            console.print(f"Next: asl-triton fetch {listed[0].name}", soft_wrap=True)
        return

    if name == DETECTOR:
        if labels is not None:
            raise AslTritonError(f"{DETECTOR} has no glosses: remove --labels")
        with DownloadProgress(Console(stderr=True)) as progress:
            folder, is_new = fetch_detector(to, force=force, on_bytes=progress.show_bytes)
        if as_json:
            print(json.dumps({"folder": str(folder), "is_new": is_new, "archive": None}))
            return
        state = "is ready" if is_new else "already exists (--force downloads it again)"
        lines = [f"{name} {state}, in {folder}", f"License: {TERMS}"]
        if to is not None:
            lines.append(f"Next: export {FOLDER_VARIABLE}={folder}")
        if not find_spec("openvino"):
            lines.append("Next: pip install openvino, which it runs on")
        console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)
        return

    with DownloadProgress(Console(stderr=True)) as progress:
        fetched = fetch_bundle(
            name, to, force=force, labels=labels, on_bytes=progress.show_bytes, on_step=progress.show_step
        )
    if as_json:
        archive = str(fetched.archive) if fetched.archive else None
        print(json.dumps({"folder": str(fetched.folder), "is_new": fetched.is_new, "archive": archive}))
        return
    state = "is ready" if fetched.is_new else "already exists (--force downloads it again)"
    lines = [
        f"{name} {state}: {fetched.weights.num_classes} glosses, in {fetched.folder}",
        f"License: {fetched.weights.terms}",
    ]
    if fetched.archive:
        lines.append(f"The archive has other weights too, so it was kept. You may delete it: {fetched.archive}")
    lines.append(f"Next: asl-triton export {fetched.folder}")
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def describe_weights(weights: "Weights") -> dict[str, str | int | float | None]:
    """Return published weights as JSON values."""
    return {
        "name": weights.name,
        "language": weights.language,
        "num_classes": weights.num_classes,
        "preset": weights.preset,
        "top1": weights.accuracy.top1,
        "top5": weights.accuracy.top5,
        "top10": weights.accuracy.top10,
        "test_set": weights.test_set,
        "good_for": weights.good_for,
        "num_bytes": weights.checkpoint.num_bytes,
        "url": weights.checkpoint.url,
        "license": weights.license,
        "terms": weights.terms,
        "homepage": weights.homepage,
    }


def make_table(listed: list["Weights"]) -> Table:
    """Build a table of published weights, one row each."""
    table = Table(
        title="Published weights",
        caption="Accuracy: percent of the test set's clips, as published. Only compare rows with the same test set.",
        show_lines=True,
    )
    table.add_column("name", no_wrap=True)
    table.add_column("what they are")
    for number, weights in enumerate(listed):
        accuracy, size = weights.accuracy, weights.checkpoint.num_bytes
        top10 = "" if accuracy.top10 is None else f", top-10 {accuracy.top10:.2f}"
        lines = (
            f"{weights.num_classes:,} glosses of {SHORT_LANGUAGES[weights.language]}; {weights.good_for}",
            f"top-1 {accuracy.top1:.2f}, top-5 {accuracy.top5:.2f}{top10} on {weights.test_set}",
            f"license: {weights.license}" + ("" if size is None else f"; download: {size / 1e6:.0f} MB"),
        )
        recommended = "\n(recommended)" if number == 0 and len(listed) > 1 else ""
        table.add_row(f"[bold]{weights.name}[/]{recommended}", "\n".join(lines))
    return table


class DownloadProgress:
    """Shows the progress of downloads: bars on a terminal, a line every 10 % elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}

    def __enter__(self) -> "DownloadProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show_step(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def show_bytes(self, filename: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` bytes of a file have arrived."""
        if filename not in self._tasks:
            self._tasks[filename] = self._bars.add_task(filename, total=total, completed=done)
            self._tenths[filename] = 0
            if not self._console.is_terminal:
                self.show_step(f"Downloading {filename}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
        self._bars.update(self._tasks[filename], completed=done, total=total)
        tenth = 10 * done // total if total else 0
        if tenth > self._tenths[filename] and not self._console.is_terminal:
            self._tenths[filename] = tenth
            self.show_step(f"{filename}: {tenth * 10} %")
