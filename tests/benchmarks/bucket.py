"""What `--bucket N` changes: answers to clips that were made as long as a multiple of N frames with their last one.

    python -m tests.benchmarks.bucket

On two real clips with the reference checkpoint, where `../shared` is there, and on clips of the demo signer that the
demo checkpoint has never seen: how many frames are added; the largest change of a logit, over how many the logits of
that clip spread; the largest change of any gloss's confidence, and of that of the best gloss; and whether the best
glosses stay. Bare forwards in float32; the padding is that of the product.
"""

import argparse
import runpy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from asl_triton.decoding.base import WindowingOptions
from asl_triton.decoding.in_process import InProcessDecodeSession
from asl_triton.postprocessing.ranking import compute_confidences
from asl_triton.presets import PRESETS, Preset
from asl_triton.results import Logits
from asl_triton.video.reader import Image, Limits
from asl_triton_demo import training as demo_training
from asl_triton_demo.signer import render, write_video
from asl_triton_demo.signs import SIGNS
from asl_triton_export.checkpoint import load_checkpoint, open_bundle
from asl_triton_export.formats.served_i3d import ServedI3D
from asl_triton_export.i3d import I3D
from tests.paths import DEMO_BUNDLE, SHARED

SHARED = SHARED
BUCKETS = (8, 16, 32)


@dataclass(frozen=True)
class Change:
    """What a bucket did to one clip's answer."""

    frames: int
    padded: int
    logit: float
    spread: float  # of the logits, from the lowest to the highest
    confidence: float
    best_confidence: float  # of the gloss that was the best
    same_best: bool
    same_five: bool


def main() -> None:
    """Answer each clip as it is and with each bucket, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40, help="how many clips of the demo signer")
    arguments = parser.parse_args()
    console = Console(width=120)
    table = Table(title="largest changes by --bucket, against clips as they are", title_justify="left", box=None)
    columns = ("clips", "bucket", "added", "logit", "spread", "confidence", "best's", "same best", "same five")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    preset = PRESETS["wlasl"]
    with tempfile.TemporaryDirectory() as folder, console.status("Answering"):
        for what, net, paths in subjects(Path(folder), arguments.clips):
            for bucket, changes in measure(net, preset, paths):
                table.add_row(what, str(bucket), *summed_up(changes))
    console.print(table)


def subjects(folder: Path, count: int) -> Iterator[tuple[str, I3D, Sequence[Path]]]:
    """The checkpoints, each with clips that it is asked about."""
    if SHARED.is_dir():
        weights = runpy.run_path(str(SHARED / "reference" / "make_checkpoint.py"))["build_state_dict"]()
        torch.save(weights, folder / "reference.pt")
        for path in sorted((SHARED / "wlasl" / "videos").glob("*.mp4")):
            yield f"WLASL's {path.stem}, reference", load_checkpoint(folder / "reference.pt").network(), [path]
    paths = []
    for number in range(count):
        sign = SIGNS[number % len(SIGNS)]
        write_video(render(sign, demo_training.FIRST_HELD_OUT_SEED + 500 + number), folder / f"{number:03}.mp4")
        paths.append(folder / f"{number:03}.mp4")
    yield f"{count} of the demo signer, demo", load_checkpoint(open_bundle(DEMO_BUNDLE).weights).network(), paths


def measure(net: I3D, preset: Preset, paths: Sequence[Path]) -> Iterator[tuple[int, list[Change]]]:
    """What each bucket changes."""
    served = torch.jit.script(ServedI3D(net, preset, torch.float32).eval())

    def answer(path: Path, bucket: int) -> tuple[Image, Logits]:
        with InProcessDecodeSession(path, WindowingOptions(preset, Limits(), bucket=bucket)) as reading:
            reading.open()
            ((window, _),) = reading.windows()
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            logits, _, _ = served(torch.from_numpy(window.frames)[None])
        return window.frames, logits[0].numpy()

    plain = [answer(path, 1) for path in paths]
    for bucket in BUCKETS:
        changes = []
        for path, (frames, before) in zip(paths, plain, strict=True):
            padded, after = answer(path, bucket)
            best = [np.argsort(-logits)[:5] for logits in (before, after)]
            sure = [compute_confidences(logits, preset) for logits in (before, after)]
            changes.append(
                Change(
                    frames=len(frames),
                    padded=len(padded),
                    logit=float(np.abs(after - before).max()),
                    spread=float(np.ptp(before)),
                    confidence=float(np.abs(sure[1] - sure[0]).max()),
                    best_confidence=float(abs(sure[1] - sure[0])[best[0][0]]),
                    same_best=bool(best[0][0] == best[1][0]),
                    same_five=set(best[0]) == set(best[1]),
                )
            )
        yield bucket, changes


def summed_up(changes: Sequence[Change]) -> tuple[str, ...]:
    """Some clips' changes as a row."""
    added = sum(change.padded for change in changes) / sum(change.frames for change in changes) - 1
    worst = max(changes, key=lambda change: change.logit)
    of = f" of {len(changes)}"
    return (
        f"{added:.0%}",
        f"{worst.logit:.2f}",
        f"{worst.spread:.0f}",
        f"{max(change.confidence for change in changes):.3f}",
        f"{max(change.best_confidence for change in changes):.3f}",
        f"{sum(change.same_best for change in changes)}{of}",
        f"{sum(change.same_five for change in changes)}{of}",
    )


if __name__ == "__main__":
    main()
