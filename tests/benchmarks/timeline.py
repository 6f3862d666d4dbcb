"""Timelines of ten-minute films of sixty demo signs: signs found, false signs, accuracy of times, speed and memory.

    python -m tests.benchmarks.timeline --work timelines
    python -m tests.benchmarks.timeline --work timelines --alternatives

Two films are rendered and kept in the work folder. In one, each scene has one signer who signs ten signs with pauses in
between. The other joins clips: each sign and each pause has its own signer and room. No training has seen their seeds,
and the rules of `Segmentation` were chosen with other seeds (from 8,000,000 on). `asl-triton batch` sends the films to
the demo checkpoint in a real Triton, in the precision that is fastest on this machine.

A sign is found if a segment of its gloss overlaps it; any other segment is false. The gloss error rate is the edit
distance between the two sequences of glosses divided by the number of signs. `film.FilmSign` defines when a sign starts
and ends.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from asl_triton.models.served import FRAMES, STEP_LOGITS, read_model
from asl_triton.postprocessing.segmentation import Segmenter
from asl_triton.postprocessing.stitching import Stitcher, with_window
from asl_triton.presets import PRESETS
from asl_triton.results import Segment, Step
from asl_triton.transport.factory import make_transport
from asl_triton.video.preprocessing import crop_frames
from asl_triton.video.reader import open_video
from asl_triton.video.shots import number_shots
from asl_triton.video.windows import WindowTiming, cut_timed_windows, cut_windows_by_shot
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import load_checkpoint, read_labels_for
from asl_triton_export.exporter import export_model, fastest_precision
from tests.benchmarks.__main__ import measure_peak_memory_mb
from tests.benchmarks.film import FilmSign, write_film
from tests.paths import DEMO_BUNDLE

FIRST_SEED = 7_000_000
KINDS = {"one signer, ten signs per shot": 10, "one clip per sign, one clip per pause": 0}


@dataclass(frozen=True)
class Score:
    """How well a timeline matches the signs of a film. Border errors are in milliseconds, positive if late."""

    found: float  # share of the signs
    false_per_minute: float
    gloss_error_rate: float
    starts_ms: np.ndarray  # of the signs found
    ends_ms: np.ndarray
    missed: list[str]  # glosses, and what was reported instead

    @property
    def borders_ms(self) -> float:
        """The median error of starts and ends."""
        return float(np.median(np.abs([self.starts_ms, self.ends_ms])))


def score_timeline(segments: Sequence[Segment], signed: Sequence[FilmSign], seconds: float) -> Score:
    """Match each sign, in order, to the segment of its gloss that overlaps it most."""
    unmatched = list(segments)
    starts, ends, missed = [], [], []
    for sign in signed:
        shared = [min(s.end_s, sign.end_s) - max(s.start_s, sign.start_s) for s in unmatched]
        candidates = [n for n, segment in enumerate(unmatched) if segment.gloss == sign.gloss and shared[n] > 0]
        if candidates:
            segment = unmatched.pop(max(candidates, key=lambda n: shared[n]))
            starts.append(1000 * (segment.start_s - sign.start_s))
            ends.append(1000 * (segment.end_s - sign.end_s))
        else:
            instead = ", ".join(segment.gloss for segment, s in zip(unmatched, shared, strict=True) if s > 0)
            missed.append(f"{sign.gloss} ({instead or 'nothing'})")
    distance = count_edits([segment.gloss for segment in segments], [sign.gloss for sign in signed])
    return Score(
        found=len(starts) / len(signed),
        false_per_minute=len(unmatched) * 60 / seconds,
        gloss_error_rate=distance / len(signed),
        starts_ms=np.array(starts),
        ends_ms=np.array(ends),
        missed=missed,
    )


def count_edits(one: Sequence[str], other: Sequence[str]) -> int:
    """The smallest number of glosses to insert, delete or replace (Levenshtein 1966)."""
    distances = list(range(len(other) + 1))
    for row, gloss in enumerate(one, start=1):
        diagonal, distances[0] = distances[0], row
        for column, other_gloss in enumerate(other, start=1):
            replaced = diagonal + (gloss != other_gloss)
            diagonal = distances[column]
            distances[column] = min(replaced, diagonal + 1, distances[column - 1] + 1)
    return distances[-1]


@dataclass(frozen=True)
class Cost:
    """What a timeline costs. `cpu_s` includes the client and the server."""

    seconds: float
    cpu_s: float
    client_peak_mb: float


def run_batch(address: str, film: Path, output: Path, options: Sequence[str]) -> tuple[list[Segment], Cost]:
    """Run `asl-triton batch --timeline` in a separate process. Returns its segments and their cost."""
    command = [sys.executable, "-m", "asl_triton", "batch", str(film), "--server", address, "--output", str(output)]
    began_s, began_cpu_s = time.perf_counter(), read_children_cpu_s()
    peak_mb = measure_peak_memory_mb([*command, "--timeline", "--format", "jsonl,eaf,vtt", *options])
    cost = Cost(time.perf_counter() - began_s, read_children_cpu_s() - began_cpu_s, peak_mb)
    rows = [json.loads(line) for line in (output / film.stem).with_suffix(".jsonl").read_text().splitlines()]
    return [Segment(**{key: row[key] for key in Segment.__annotations__}) for row in rows], cost


def read_children_cpu_s() -> float:
    """CPU seconds of all child processes so far, including those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return ended.ru_utime + ended.ru_stime + sum(times.user + times.system for times in living)


@dataclass
class CentralStitcher:
    """An alternative to `Stitcher`: takes each step from the window in which it is closest to the middle."""

    preset: object
    end: int = 0

    def __post_init__(self) -> None:
        self.pending: list[tuple[float, WindowTiming, np.ndarray]] = []

    def add(self, span: WindowTiming, step_logits: np.ndarray) -> list[Step]:
        """Like `Stitcher.add`."""
        border = (span.start + self.end) / 2
        finished = [step for middle, *one in self.pending if middle < border for step in self.stitch_one(*one)]
        middles = span.start + 8.0 * np.arange(1, len(step_logits) + 1)
        self.pending = [
            (middle, WindowTiming(span.start + 8 * n, 16, span.edges_s[8 * n : 8 * n + 17]), step_logits[n : n + 1])
            for n, middle in enumerate(middles)
            if middle >= border or not self.end
        ]
        self.end = span.start + span.num_frames
        return finished

    def finish(self) -> list[Step]:
        """Like `Stitcher.finish`."""
        return [step for _, *one in self.pending for step in self.stitch_one(*one)]

    def stitch_one(self, span: WindowTiming, step_logits: np.ndarray) -> list[Step]:
        """Stitch a single step, for the middle half of its 16 frames."""
        stitcher = Stitcher(self.preset)  # type: ignore[arg-type]
        middle = WindowTiming(span.start + 4, min(8, len(span.edges_s) - 5), span.edges_s[4:13])
        return stitcher.add(middle, step_logits) + stitcher.finish()


async def run_alternatives(address: str, film: Path) -> dict[str, list[Segment]]:
    """Segment one film with other ways to cut it into windows and to stitch the steps."""
    transport = make_transport(address)
    served = await read_model(transport)
    preset = with_window(served.preset)
    ways: dict[str, tuple[Callable[..., object], type]] = {
        "mean of the windows, cut at shots": (cut_windows_by_shot, Stitcher),
        "most central, cut at shots": (cut_windows_by_shot, CentralStitcher),
        "mean of the windows, never cut": (cut_timed_windows, Stitcher),
        "most central, never cut": (cut_timed_windows, CentralStitcher),
    }
    segments_by_way = {}
    for cut in (cut_windows_by_shot, cut_timed_windows):
        with open_video(film) as video:
            answers = []
            crops = number_shots(crop_frames(video, preset, 10**6))
            for window, span in cut(crops, preset, video.frame_rate):
                answer = await transport.infer(served.name, {FRAMES: served.make_input(window.frames)}, [STEP_LOGITS])
                answers.append((span, answer[STEP_LOGITS][0]))
        for name, (way_cut, stitcher_type) in ways.items():
            if way_cut is cut:
                stitcher, segmenter, segments = stitcher_type(preset), Segmenter(served.labels), list[Segment]()
                steps = [step for span, logits in answers for step in stitcher.add(span, logits)] + stitcher.finish()
                for step in steps:
                    segments += segmenter.push(step)
                segments += segmenter.finish()
                segments_by_way[name] = sorted(segments, key=lambda segment: segment.start_s)
    await transport.close()
    return segments_by_way


def main() -> None:
    """Render the films, serve the model, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps the films; temporary by default")
    parser.add_argument("--seconds", type=int, default=600, help="length of each film")
    parser.add_argument("--signs", type=int, default=60, help="signs in each film")
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--alternatives", action="store_true", help="also measure other ways to cut and to stitch")
    parser.add_argument("options", nargs="*", help="further options of `batch --timeline`, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        films = {}
        for number, (kind, signs_per_scene) in enumerate(KINDS.items()):
            path = work / f"{arguments.seed}-{arguments.seconds}-{arguments.signs}-{signs_per_scene}.mp4"
            signed = write_film(
                path,
                seconds=arguments.seconds,
                signs=arguments.signs,
                signs_per_scene=signs_per_scene,
                seed=arguments.seed + 1000 * number,
            )
            films[kind] = (path, signed)
        bundle = open_bundle(DEMO_BUNDLE)
        checkpoint = load_checkpoint(bundle.weights)
        assert bundle.labels is not None
        labels = read_labels_for(checkpoint, bundle.labels)
        precision = fastest_precision()
        export_model(checkpoint, labels, PRESETS["wlasl"], Path(scratch) / "m", "demo", precision=precision)
        with LocalTriton(Path(scratch) / "m") as triton:
            show(triton.address, films, Path(scratch), arguments, precision)


def show(
    address: str,
    films: dict[str, tuple[Path, list[FilmSign]]],
    output: Path,
    arguments: argparse.Namespace,
    precision: str,
) -> None:
    """Measure the films, and print the tables."""
    console = Console(width=160)
    table = Table(title=f"{arguments.seconds} s, {arguments.signs} signs, demo checkpoint in {precision}")
    names = ("film", "found", "false per minute", "gloss errors", "borders ms", "starts ms", "ends ms")
    for name in (*names, "times real time", "CPU s", "client's peak MB"):
        table.add_column(name, justify="left" if name == "film" else "right")
    missed = {}
    for kind, (path, signed) in films.items():
        segments, cost = run_batch(address, path, output / "out", arguments.options)
        scored = score_timeline(segments, signed, arguments.seconds)
        missed[kind] = scored.missed
        speed = f"{arguments.seconds / cost.seconds:.1f}"
        table.add_row(kind, *format_score(scored), speed, f"{cost.cpu_s:.0f}", f"{cost.client_peak_mb:.0f}")
    console.print(table)
    for kind, glosses in missed.items():
        console.print(f"missed, {kind}: {', '.join(glosses) or 'none'}")
    for kind, (path, signed) in films.items() if arguments.alternatives else ():
        table = Table(title=kind)
        for name in names:
            table.add_column(name, justify="left" if name == "film" else "right")
        for way, segments in asyncio.run(run_alternatives(address, path)).items():
            table.add_row(way, *format_score(score_timeline(segments, signed, arguments.seconds)))
        console.print(table)


def format_score(scored: Score) -> list[str]:
    """Format a score as table cells, with the medians of starts and ends."""
    return [
        f"{scored.found:.1%}",
        f"{scored.false_per_minute:.1f}",
        f"{scored.gloss_error_rate:.1%}",
        f"{scored.borders_ms:.0f}",
        f"{np.median(scored.starts_ms):+.0f}",
        f"{np.median(scored.ends_ms):+.0f}",
    ]


if __name__ == "__main__":
    main()
