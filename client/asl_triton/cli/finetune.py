"""`asl-triton finetune`: train a checkpoint on labeled clips."""

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
from asl_triton.evaluation.dataset import format_count
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
            help="A folder with one subfolder of clips per gloss; or a data set: WLASL's nslt_100.json or "
            "WLASL_v0.3.json, or the folder of ASL Citizen (splits/, videos/) or of MS-ASL (MSASL_*.json, videos/).",
            show_default=False,
        ),
    ],
    start: Annotated[
        Path,
        typer.Option(
            "--from",
            help="The checkpoint to start from: a .pt or .safetensors file, a bundle folder, or `demo`.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(help="The folder for the new bundle. It must not exist yet.", show_default=False),
    ],
    videos: Annotated[
        Path | None, typer.Option(help="The folder of a data set's videos. Default: `videos` next to it.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="The glosses to learn, in class order: one per line, or WLASL's class list. Each gloss needs clips. "
            "Default: for a folder, the names of its subfolders, so the new model knows nothing else; for a data set, "
            "the labels of the --from bundle."
        ),
    ] = None,
    keep_known: Annotated[
        bool,
        typer.Option(
            "--keep-known",
            help="Add the glosses of your clips to those that the checkpoint knows. Known glosses need no clips and "
            "keep their part of the classifier. The new part is computed in one epoch, not trained. Requires --train "
            "head.",
        ),
    ] = False,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out glosses that have no clips to learn from.")
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
            help="head: only the classifier, in minutes on a CPU, for signs that look like those it knows. "
            "last: also the last two blocks. all: everything, as WLASL was trained; needs a GPU and many clips."
        ),
    ] = "all",
    epochs: Annotated[int, typer.Option(min=1, help="At most this many passes through the clips.")] = 100,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop when the held-out loss has not improved for this many epochs.")
    ] = 20,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0, max=10, help="Adam's learning rate. Default: 0.0001, as for WLASL2000; 0.01 with --train head."
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(min=0, help="Adam's weight decay, as for WLASL2000.")] = 1e-8,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per batch, on each device.")] = 6,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches per optimizer step.")] = 1,
    segment_frames: Annotated[
        int, typer.Option(min=9, max=300, help="Consecutive frames to train on, from anywhere in a clip.")
    ] = 64,
    flip: Annotated[
        bool,
        typer.Option(
            help="Mirror every other segment, as WLASL does, since a left-handed signer mirrors a right-handed one. "
            "Use --no-flip for glosses that mean a side (left, right, east, west)."
        ),
    ] = True,
    views: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --train head: how many random segments of each clip to alternate between. Their features are "
            "computed only once.",
        ),
    ] = 4,
    held_out: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.9,
            help="The share of each gloss's clips to hold out. Data sets use their `val` part instead.",
        ),
    ] = 0.2,
    precision: Annotated[
        Precision,
        typer.Option(
            help="fp32, or mixed precision: bf16 for CPUs that support it, fp16 for NVIDIA GPUs. auto: the "
            "fastest on this machine."
        ),
    ] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for the held-out clips, their order, segments and crops.")
    ] = 0,
    accelerator: Annotated[str, typer.Option(help="Lightning's accelerator: auto, cpu, gpu, ...")] = "auto",
    devices: Annotated[str, typer.Option(help='Lightning\'s devices: how many, or which ("0,2").')] = "auto",
    num_nodes: Annotated[
        int, typer.Option(min=1, help="How many machines run this command with the same shared --to.")
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode clips. Default: 0 on a CPU, else up to 8."),
    ] = None,
) -> None:
    """Train a checkpoint on your clips, and write a bundle for `asl-triton export`.

    The default recipe is WLASL's. The new model knows only the glosses of your clips, unless you give --keep-known.
    Glosses that the checkpoint already knows start with their part of the classifier. Some clips are held out, together
    with all of their copies, and the network with the lowest held-out loss is kept. The bundle also has `metrics.json`
    and `metrics.csv` with one row per epoch. If training stops or is killed, run the same command again: it resumes
    after the last epoch, with the same result. Exit code 3: done, but some clips could not be read.

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
        Console(stderr=True).print("Interrupted. Run the same command again to resume after the last epoch.")
        raise
    if tuned.is_main:
        print_summary(tuned, console)
    raise typer.Exit(3 if tuned.clips.broken else 0)


def print_summary(tuned: FineTuneResult, console: Console) -> None:
    """Print the results and the next command."""
    clips, best = tuned.clips, tuned.best
    for warning in clips.warnings:
        console.print(f"[yellow]Note:[/] {escape(warning)}", soft_wrap=True)
    for what, names in (("unreadable", clips.broken), ("missing", clips.missing)):
        if names:
            count = format_count(len(names), f"{what} clip was", f"{what} clips were")
            console.print(f"[yellow]{count} left out:[/]", soft_wrap=True)
            for name in names[:SHOWN]:
                console.print(f"  {escape(name)}", soft_wrap=True)
            if len(names) > SHOWN:
                console.print(f"  and {len(names) - SHOWN:,} more")
    again = f", resumed after epoch {tuned.resumed_after}" if tuned.resumed_after else ""
    console.print(
        f"[bold]{len(clips.glosses)} glosses[/] ({tuned.known} of them known to the checkpoint) from "
        f"{len(clips.train):,} clips in {len(tuned.epochs)} epochs{again}",
        soft_wrap=True,
    )
    top1, top5 = (format_accuracy(share, len(clips.held_out)) for share in (best.held_out_top1, best.held_out_top5))
    console.print(
        f"Best epoch {best.epoch}, on {len(clips.held_out):,} held-out clips: top-1 {top1}, top-5 {top5}, loss "
        f"{best.held_out_loss:.4f}; in {tuned.folder}",
        soft_wrap=True,
    )
    console.print(f"Next: asl-triton export {tuned.folder}", soft_wrap=True)


class TrainingProgress:
    """Shows progress on standard error: one line per epoch, and a bar on a terminal or an occasional line elsewhere."""

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
        """Print warnings about the chosen clips before training starts."""
        self._num_held_out = len(clips.held_out)
        for warning in clips.warnings:
            self._console.print(f"[yellow]Note:[/] {escape(warning)}", soft_wrap=True)

    def step(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a task are done."""
        if what != self._what:
            self._what = what
            self._bar.reset(self._task, description=what, total=total)
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.monotonic()
            self._console.print(f"{what}: {done}/{total}")

    def epoch(self, row: Epoch) -> None:
        """Print the figures of a finished epoch."""
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
