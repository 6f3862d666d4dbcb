"""`asl-triton evaluate`: measure a served model on labeled clips."""

import asyncio
import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption, SignerOption, parse_signer
from asl_triton.cli.progress import ROWS_SHOWN, ClipProgress
from asl_triton.cli.terminal import Console
from asl_triton.errors import AslTritonError, CheckpointError
from asl_triton.evaluation.dataset import format_list, read_dataset
from asl_triton.evaluation.metrics import Threshold
from asl_triton.evaluation.report import EvaluationReport, write_report
from asl_triton.evaluation.scoring import ClassMapping, ScoringRun, read_merge, score_clips
from asl_triton.extras import require_extra
from asl_triton.files import check_writable, sha256
from asl_triton.models.served import ServedModel
from asl_triton.results import Recognition
from asl_triton.transport.triton_grpc import BULK_PRIORITY, DEFAULT_IN_FLIGHT
from asl_triton.writers.html import load_templates

CONFUSIONS_SHOWN = 10
MIN_CALIBRATION_CLIPS = 50


@with_connection("dictionary", "send", "model", "local", "server", "transport")
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder with one subfolder per gloss; or a data set: WLASL's nslt_2000.json or WLASL_v0.3.json, "
            "ASL Citizen's splits/test.csv or its folder, MS-ASL's MSASL_test.json or its folder.",
        ),
    ],
    videos: Annotated[
        Path | None, typer.Option(help="The folder of a data set's videos. Default: `videos` next to it.")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Use one part of a data set: train, val or test. Default: all of it.")
    ] = None,
    merge: Annotated[
        Path | None,
        typer.Option(help="Score glosses that look alike as one: a file with one comma-separated group per line."),
    ] = None,
    signer: SignerOption = None,
    write_threshold: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Write the recommended threshold into the bundle that the model was exported from. Use clips that it "
            "was not trained on.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The folder for the report, created if missing.")] = Path("results"),
    in_flight: Annotated[
        int, typer.Option(min=1, max=256, help="How many requests may be in flight at once.")
    ] = DEFAULT_IN_FLIGHT,
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """Measure a served model on labeled clips: top-1, 5, 10 and 20 accuracy, confusions and calibration.

    Accuracy is per instance and per class, with DCG and MRR. If the data set names its signers, the report also has
    figures for each signer, their spread, and confidence intervals for new signers. Boxes of signers, and the start
    and end of signs in untrimmed videos, are taken from the data set.

    Writes OUTPUT/evaluation.json and OUTPUT/evaluation.html, a self-contained page. Videos that a split lists but that
    are missing are counted and left out. Exit code 3: some clips could not be read.

    The recommended threshold is the confidence below which answers should count as unsure. Above it, more than 90 % of
    the answers to these clips are right. With --write-threshold, it becomes the default of every client of the model
    once you export the bundle again.

        asl-triton evaluate clips/ --local
        asl-triton evaluate ASL_Citizen/splits/test.csv
        asl-triton evaluate WLASL_v0.3.json --videos videos/ --subset test
        asl-triton evaluate nslt_2000.json --videos videos/ --subset test --merge look_alikes.txt
        asl-triton evaluate ASL_Citizen/splits/val.csv --write-threshold weights/asl-citizen
    """
    box = parse_signer(signer)
    groups = read_merge(merge) if merge else []
    began_s = time.perf_counter()
    check_writable(output)  # these two fail now, not after measuring
    load_templates()
    with connection.address() as address:
        served = asyncio.run(connection.read_model(address))
        if write_threshold:
            check_bundle(write_threshold, served)  # so does this
        asked = dataclasses.replace(connection, model=served.name)
        classes = ClassMapping.of(served.labels, groups)
        dataset = read_dataset(data, videos=videos, subset=subset, labels=served.labels).with_signer(box)
        with ClipProgress[Recognition](len(dataset.clips)) as progress:
            answers = score_clips(
                lambda: asked.make_recognizer(address, in_flight, priority=BULK_PRIORITY, find_signer=signer != "off"),
                dataset.clips,
                classes,
                clips_at_once=in_flight,
                on_outcome=progress.advance,
            )
    if not answers.answers:
        first = answers.failures[0]
        raise AslTritonError(f"none of the {len(answers.failures)} clips could be read. The first error: {first.error}")
    report = EvaluationReport(data, subset, dataset, served, classes, answers)
    files = write_report(report, output)
    console = Console()
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        show(report, time.perf_counter() - began_s, files, console)
    if write_threshold:
        card = save_threshold(write_threshold, report)
        if not as_json:
            line = f"written: {card}. Next: asl-triton export {write_threshold} --force"
            console.print(escape(line), soft_wrap=True)
    raise typer.Exit(3 if answers.failures or answers.not_tried else 0)


def check_bundle(folder: Path, served: ServedModel) -> None:
    """Check that a model was exported from the weights of a bundle.

    Raises:
        CheckpointError: it was not, or the folder is not a bundle.
    """
    with require_extra("export"):
        from asl_triton_export.bundle import open_bundle
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: name the bundle's folder (--write-threshold)")
    weights = open_bundle(folder).weights
    if sha256(weights) != served.checkpoint_sha256:
        raise CheckpointError(
            f"{served.name} was not exported from {weights}: name the bundle with its weights (--write-threshold), or "
            "evaluate the model that was exported from this one"
        )


def save_threshold(folder: Path, report: EvaluationReport) -> Path:
    """Write the recommended threshold into a bundle, and return the path of its card.

    Raises:
        AslTritonError: there are too few clips, or no threshold is good enough. The bundle is left unchanged.
    """
    with require_extra("export"):
        from asl_triton_export.bundle import write_threshold
    threshold, clips = report.evaluation.threshold, report.evaluation.clips
    if clips < MIN_CALIBRATION_CLIPS:
        raise AslTritonError(
            f"no threshold was written: {clips:,} clips were scored, and at least {MIN_CALIBRATION_CLIPS} are needed"
        )
    if report.answers.stopped:
        raise AslTritonError("no threshold was written because the evaluation stopped early")
    if threshold is None:
        raise AslTritonError(
            f"no threshold was written: no confidence is high enough for more than 90 % of {report.model.name}'s "
            "answers to these clips to be right"
        )
    return write_threshold(folder, threshold.min_confidence)


def show(report: EvaluationReport, seconds: float, files: tuple[Path, ...], console: Console) -> None:
    """Print the figures, the clips that were not scored, and where the report is."""
    evaluation = report.evaluation
    table = Table(box=None, pad_edge=False)
    for column in ("", "top-1", "top-5", "top-10", "top-20"):
        table.add_column(column, justify="right" if column else "left")
    for name, accuracy in (("per instance", evaluation.per_instance), ("per class", evaluation.per_class)):
        shares = (accuracy.top1, accuracy.top5, accuracy.top10, accuracy.top20)
        table.add_row(name, *(f"{share:.2%}" for share in shares))
    console.print(table)
    retrieval = evaluation.retrieval
    console.print(f"DCG {retrieval.dcg:.4f}, mean reciprocal rank {retrieval.mrr:.4f}", highlight=False)
    low, high = evaluation.top1_interval
    console.print(f"top-1 per instance is {low:.1%} to {high:.1%} with 95 % confidence", highlight=False)
    console.print(f"expected calibration error {evaluation.calibration_error:.2%} (15 bins)", highlight=False)
    console.print(format_threshold(evaluation.threshold), highlight=False, soft_wrap=True)
    if spread := evaluation.signer_spread:
        line = (
            f"top-1 of {spread.signers:,} signers is {spread.lowest:.1%} to {spread.highest:.1%}, median "
            f"{spread.median:.1%}, standard deviation {spread.deviation:.1%}"
        )
        if interval := evaluation.signer_intervals:
            line += (
                f"; over signers, top-1 per instance is {interval.top1[0]:.1%} to {interval.top1[1]:.1%} with 95 % "
                "confidence"
            )
        console.print(line, highlight=False, soft_wrap=True)
    if evaluation.confused:
        console.print()
        console.print(format_confusions(report))
    show_left_out(report.answers, report, console)
    parts = [f"{evaluation.clips:,} clips of {evaluation.classes:,} of {evaluation.vocabulary:,} glosses scored"]
    parts += [f"{len(report.answers.failures):,} failed"] if report.answers.failures else []
    parts += [f"{len(report.dataset.missing):,} missing"] if report.dataset.missing else []
    parts += [f"{report.answers.not_tried:,} not tried"] if report.answers.not_tried else []
    console.print(f"{', '.join(parts)} in {seconds:.1f} s", highlight=False)
    console.print("written: " + escape(", ".join(str(path) for path in files)), soft_wrap=True)


def format_threshold(threshold: Threshold | None) -> str:
    """Describe the recommended threshold in a sentence."""
    if threshold is None:
        return "no recommended threshold: no confidence is high enough for more than 90 % of the answers to be right"
    return (
        f"recommended threshold {threshold.min_confidence:.0%}: {threshold.reached:.1%} of the answers reach it, "
        f"{threshold.accuracy:.1%} of those are right"
    )


def format_confusions(report: EvaluationReport) -> Table:
    """Build a table of the most confused pairs."""
    pairs = report.evaluation.confused
    table = Table("signed", "most taken for", box=None, pad_edge=False)
    table.add_column("clips", justify="right")
    table.add_column("of", justify="right")
    for pair in pairs[:CONFUSIONS_SHOWN]:
        table.add_row(escape(pair.truth), escape(pair.taken_for), str(pair.clips), str(pair.of))
    return table


def show_left_out(answers: ScoringRun, report: EvaluationReport, console: Console) -> None:
    """Print which clips the figures do not include, and warnings about the data."""
    for failure in answers.failures[:ROWS_SHOWN]:
        console.print(f"[red]failed[/] {escape(failure.video)}: {escape(failure.error)}", soft_wrap=True)
    if len(answers.failures) > ROWS_SHOWN:
        console.print(f"... and {len(answers.failures) - ROWS_SHOWN:,} more, in the files below")
    for warning in report.warnings:
        console.print(f"[yellow]warning[/] {escape(warning)}", soft_wrap=True, highlight=False)
    if missing := report.dataset.missing:
        console.print(
            f"[yellow]missing[/] {len(missing):,} videos that the split lists: {escape(format_list(missing))}",
            soft_wrap=True,
            highlight=False,
        )
    if answers.stopped:
        console.print(f"[red]stopped[/] before the end: {escape(answers.stopped)}", soft_wrap=True)
