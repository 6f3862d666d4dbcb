"""`asl-triton finetune`: a checkpoint learns the glosses of labeled clips."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from asl_triton.cli.options import CaveatOption, PurposeOption
from asl_triton.cli.terminal import Console
from asl_triton.evaluation.metrics import format_accuracy
from asl_triton.extras import require_extra
from asl_triton.labels import read_labels
from asl_triton.presets import PRESETS, read_preset

if TYPE_CHECKING:
    from asl_triton_export.finetune import FineTuneResult
    from asl_triton_export.finetune.callbacks import Epoch
    from asl_triton_export.finetune.data import Clips

Train = Literal["head", "last", "all"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]

LINE_EVERY_S = 10.0
SHOWN = 5  # clips named in the summary


def finetune(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder with one sub-folder of clips per gloss; or a data set: WLASL's nslt_100.json or "
            "WLASL_v0.3.json, or the folder of ASL Citizen (splits/, videos/) or of MS-ASL (MSASL_*.json, videos/).",
            show_default=False,
        ),
    ],
    start: Annotated[
        Path,
        typer.Option(
            "--from",
            help="The checkpoint to begin with: a .pt or .safetensors file, a bundle folder, or `demo`.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(help="The folder that the new bundle is written to: it must not be there.", show_default=False),
    ],
    videos: Annotated[
        Path | None, typer.Option(help="The folder of a data set's videos. Default: `videos` next to it.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="The glosses to learn, in class order: one a line, or WLASL's class list. Default: a folder's "
            "sub-folders, and the new model knows nothing else; for a split, the labels of the bundle that it begins "
            "with. Each gloss needs clips."
        ),
    ] = None,
    keep_known: Annotated[
        bool,
        typer.Option(
            "--keep-known",
            help="Add the glosses of your clips to those that the checkpoint knows, which need no clips and keep their "
            "part of the classifier. Not trained but computed, in one epoch; with --train head.",
        ),
    ] = False,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave glosses that have no clip to learn from out of the new model.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"How clips are prepared: {', '.join(PRESETS)}, or a JSON file. Default: the bundle's, else wlasl."
        ),
    ] = None,
    purpose: PurposeOption = None,
    caveat: CaveatOption = None,
    train: Annotated[
        Train,
        typer.Option(
            help="head: the classifier alone, minutes on a CPU, for signs that look like those it knows. "
            "last: the last two blocks too. all: everything, as WLASL was trained; wants a GPU and many clips."
        ),
    ] = "all",
    epochs: Annotated[int, typer.Option(min=1, help="At most so many times through the clips.")] = 100,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop when the held-out loss has not fallen for so many epochs.")
    ] = 20,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0, max=10, help="Adam's learning rate. Default: 0.0001, as WLASL2000; 0.01 for the head alone."
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(min=0, help="Adam's, as WLASL2000.")] = 1e-8,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips a batch, on each device.")] = 6,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches whose gradients make one step.")] = 1,
    segment_frames: Annotated[
        int, typer.Option(min=9, max=300, help="Consecutive frames to train on, from anywhere in a clip.")
    ] = 64,
    flip: Annotated[
        bool,
        typer.Option(
            help="Mirror every other segment, as WLASL does: a left-handed signer's sign is a right-handed one's in a "
            "mirror. Not for glosses that mean a side (left, right, east, west)."
        ),
    ] = True,
    views: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --train head: so many random segments of each clip take turns; what the rest of the network "
            "makes of them is computed once.",
        ),
    ] = 4,
    held_out: Annotated[
        float,
        typer.Option(min=0.01, max=0.9, help="The share of each gloss's clips that is held out. A split has `val`."),
    ] = 0.2,
    precision: Annotated[
        Precision,
        typer.Option(
            help="fp32, or mixed: bf16 for CPUs that multiply it, fp16 for NVIDIA GPUs. auto: what is fastest here."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of every draw: what is held out, order, segments, crops.")] = 0,
    accelerator: Annotated[str, typer.Option(help="Lightning's: auto, cpu, gpu, ...")] = "auto",
    devices: Annotated[str, typer.Option(help='Lightning\'s: how many, or which ("0,2").')] = "auto",
    num_nodes: Annotated[
        int, typer.Option(min=1, help="Lightning's: how many machines run this command, on one shared --to.")
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode clips. Default: none on a CPU, else up to eight."),
    ] = None,
) -> None:
    """Teach a checkpoint the glosses of your clips, and leave a bundle that `asl-triton export` takes.

    The default recipe is WLASL's. The new model knows the glosses of your clips and no others, unless you
    give --keep-known. Glosses that the checkpoint knows start with their part of the classifier. Part of the clips is
    held out, copies of a clip never without it; the network that does best on them (least loss) is kept, with
    `metrics.json` and, in `metrics.csv`, one row per epoch. Stopped or killed, the same command goes on after the last
    epoch, and ends as if it had not been. Exit code 3: done, without some clips that cannot be read.

        asl-triton finetune my-signs/ --from demo --to weights/my-signs --train head
        asl-triton finetune my-signs/ --from demo --to weights/demo-and-mine --train head --keep-known
        asl-triton finetune nslt_100.json --videos WLASL/videos --labels wlasl_class_list.txt --from kinetics.pt \\
            --to weights/wlasl100 --devices 4
    """
    with require_extra("train"):
        from asl_triton_export.bundle import open_bundle
        from asl_triton_export.checkpoint import load_checkpoint, read_labels_for
        from asl_triton_export.finetune import finetune as train_bundle
        from asl_triton_export.finetune.recipe import HardwareOptions, Recipe

    bundle = open_bundle(start)
    checkpoint = load_checkpoint(bundle.weights)
    known = read_labels_for(checkpoint, bundle.labels) if bundle.labels else None
    glosses = read_labels(labels) if labels else None if data.is_dir() else known
    recipe = Recipe(
        train=train,
        segment_frames=segment_frames,
        flip=flip,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=lr,
        weight_decay=weight_decay,
        epochs=epochs,
        patience=patience,
        views=views,
        held_out=held_out,
        precision=precision,
        seed=seed,
    )
    console = Console()
    try:
        with TrainingProgress() as progress:
            tuned = train_bundle(
                checkpoint,
                known,
                read_preset(preset) if preset else bundle.preset or PRESETS["wlasl"],
                data,
                to,
                videos=videos,
                labels=glosses,
                card=bundle.card,
                purpose=purpose,
                caveat=caveat,
                recipe=recipe,
                machines=HardwareOptions(accelerator, devices, num_nodes, workers),
                keep_known=keep_known,
                drop_empty=drop_empty,
                on_clips=progress.clips,
                on_step=progress.step,
                on_epoch=progress.epoch,
            )
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; the same command goes on after the last epoch.")
        raise
    if tuned.is_main:
        print_summary(tuned, console)
    raise typer.Exit(3 if tuned.clips.broken else 0)


def print_summary(tuned: FineTuneResult, console: Console) -> None:
    """Say what came of it, and what comes next."""
    clips, best = tuned.clips, tuned.best
    for warning in clips.warnings:
        console.print(f"[yellow]Note:[/] {escape(warning)}", soft_wrap=True)
    for what, names in (("cannot be read", clips.broken), ("of the split are missing", clips.missing)):
        if names:
            console.print(f"[yellow]{len(names):,} clips {what}[/], and were left out:", soft_wrap=True)
            for name in names[:SHOWN]:
                console.print(f"  {escape(name)}", soft_wrap=True)
            if len(names) > SHOWN:
                console.print(f"  and {len(names) - SHOWN:,} more")
    again = f", going on after epoch {tuned.resumed_after}" if tuned.resumed_after else ""
    console.print(
        f"[bold]{len(clips.glosses)} glosses[/] ({tuned.known} of them known to the checkpoint) from "
        f"{len(clips.train):,} clips in {len(tuned.epochs)} epochs{again}",
        soft_wrap=True,
    )
    top1, top5 = (format_accuracy(share, len(clips.held_out)) for share in (best.held_out_top1, best.held_out_top5))
    console.print(
        f"Best epoch {best.epoch}: of {len(clips.held_out):,} held-out clips top-1 {top1}, top-5 {top5}, loss "
        f"{best.held_out_loss:.4f}; in {tuned.folder}",
        soft_wrap=True,
    )
    console.print(f"Next: asl-triton export {tuned.folder}", soft_wrap=True)


class TrainingProgress:
    """What is going on, on standard error: a bar on a terminal, a line an epoch or now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._line_s = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("Loading", total=None)
        self._what = ""
        self._num_held_out = 0

    def clips(self, clips: Clips) -> None:
        """The clips are chosen: print what should be known before training."""
        self._num_held_out = len(clips.held_out)
        for warning in clips.warnings:
            self._console.print(f"[yellow]Note:[/] {escape(warning)}", soft_wrap=True)

    def step(self, what: str, done: int, total: int) -> None:
        """So far with one thing."""
        if what != self._what:
            self._what = what
            self._bar.reset(self._task, description=what, total=total)
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.monotonic()
            self._console.print(f"{what}: {done}/{total}")

    def epoch(self, row: Epoch) -> None:
        """An epoch is done."""
        self._line_s = time.monotonic()
        self._console.print(
            f"epoch {row.epoch}: loss {row.train_loss:.4f}, held out {row.held_out_loss:.4f}, top-1 "
            f"{format_accuracy(row.held_out_top1, self._num_held_out)}, {row.seconds:.1f} s",
            highlight=False,
        )

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
