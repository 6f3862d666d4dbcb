"""An archive of many clips through `asl-triton batch`: does it stay as fast, and as small, as it began?

    python -m tests.benchmarks.archive --clips 10000

Short clips of the demo signer, a few of them under many names (hard links), the demo model in a real Triton on this
machine, and the command as users run it, watched from outside: clips a second by its journal, the memory and the open
files of its process, and of all processes below it. Then the same command again, which has nothing to do.

    python -m tests.benchmarks.archive --clips 300 --against ../other-checkout --rounds 5

The same archive by this checkout and by another one, in turns, with one server.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from asl_triton.batch.journal import JOURNAL
from asl_triton_demo.signer import render, write_video
from asl_triton_demo.signs import SIGNS
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.exporter import fastest_precision
from tests.benchmarks.decoding import children_s
from tests.benchmarks.sending import export

DIFFERENT = 20  # clips that are rendered
EVERY_NTH_FRAME = 6
SIZE = (160, 120)
A_FOLDER = 500  # clips
SAMPLE_S = 0.5
MB = 1e6


@dataclasses.dataclass(frozen=True)
class Sample:
    """The run at one moment: `below` is all processes that the command started."""

    time_s: float
    clips: int
    resident_mb: float
    below_mb: float
    files: int


def main() -> None:
    """Make the archive, run the command twice, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("options", nargs="*", help="options of `asl-triton batch`, behind --")
    parser.add_argument("--against", type=Path, help="another checkout, to compare this one with")
    parser.add_argument("--rounds", type=int, default=5, help="how often each checkout has its turn")
    arguments = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("Rendering clips"):
            make_archive(folder / "clips", arguments.clips)
            export(folder, demo=True, precision=fastest_precision())
        with LocalTriton(folder / "models", shared_memory=True) as triton:
            command = [sys.executable, "-m", "asl_triton", "batch", str(folder / "clips")]
            command += ["--server", triton.address, "--output", str(folder / "out"), "--json", *arguments.options]
            if arguments.against:
                checkouts = {"this": Path.cwd(), "other": arguments.against.absolute()}
                console.print(compare(command, checkouts, arguments.rounds, triton))
                return
            samples, summary = watch(command, folder / "out" / JOURNAL)
            again_s, again = watch(command, folder / "out" / JOURNAL)
        doubled = arguments.clips - len(set(names(folder / "out" / "results.jsonl")))
    show(samples, summary, console)
    console.print(f"results {summary['recognized']:,}, failed {len(summary['failures'])}, doubled or lost {doubled}")
    console.print(
        f"the same command again: {again_s[-1].time_s:.1f} s, {again['known_before']:,} known, "
        f"at most {max(sample.resident_mb for sample in again_s):.0f} MB"
    )
    console.print(json.dumps(summary["pace"]))


def make_archive(folder: Path, count: int) -> None:
    """So many clips in sub-folders, of a few different ones."""
    originals = folder.parent / "originals"
    originals.mkdir()
    for number in range(DIFFERENT):
        clip = render(SIGNS[number % len(SIGNS)], seed=number)
        frames = np.stack([cv2.resize(frame, SIZE) for frame in clip.frames[::EVERY_NTH_FRAME]])
        short = dataclasses.replace(clip, frames=frames, fps=clip.fps / EVERY_NTH_FRAME)
        write_video(short, originals / f"{number}.mp4")
    for number in range(count):
        path = folder / f"{number // A_FOLDER:03}" / f"{number:06}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(originals / f"{number % DIFFERENT}.mp4", path)


def watch(command: list[str], journal: Path) -> tuple[list[Sample], dict[str, object]]:
    """Run the command: what was seen of it, and its summary."""
    began_s, samples, at, clips = time.perf_counter(), list[Sample](), 0, -1  # the question is no clip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            if journal.exists():
                with journal.open("rb") as lines:
                    lines.seek(at)
                    new = lines.read()
                at, clips = at + len(new), clips + new.count(b"\n")
            try:
                below = sum(child.memory_info().rss for child in process.children(recursive=True))
                own, files = process.memory_info().rss / MB, process.num_fds()
                samples.append(Sample(time.perf_counter() - began_s, max(clips, 0), own, below / MB, files))
            except psutil.Error:  # it has just ended
                pass
            time.sleep(SAMPLE_S)
        assert running.stdout is not None
        summary = json.loads(running.stdout.read())
    return samples, summary


def compare(command: list[str], checkouts: dict[str, Path], rounds: int, triton: LocalTriton) -> Table:
    """Medians of both checkouts, in turns: clips a second, and a processor's milliseconds per clip."""
    turns: dict[str, list[tuple[float, float, float]]] = {which: [] for which in checkouts}
    for number in range(rounds):
        for which, folder in list(checkouts.items())[:: 1 if number % 2 else -1]:
            environment = {**os.environ, "PYTHONPATH": str(folder / "client")}
            began_s, before_s, server_s = time.perf_counter(), children_s(), read_server_s(triton)
            done = subprocess.run(
                [*command, "--fresh"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
            )
            seconds, clips = time.perf_counter() - began_s, json.loads(done.stdout)["recognized"]
            each_ms = (1000 * (children_s() - before_s) / clips, 1000 * (read_server_s(triton) - server_s) / clips)
            turns[which].append((clips / seconds, *each_ms))
            print(f"{which}: {clips / seconds:.1f} a second, {each_ms[0]:.1f} and {each_ms[1]:.1f} ms", flush=True)
    table = Table("checkout", "clips a second", "client and decoders, ms", "server, ms", "both, ms", box=None)
    for which, found in turns.items():
        rate, client_ms, server_ms, both_ms = np.median([(*each, each[1] + each[2]) for each in found], axis=0)
        table.add_row(which, f"{rate:.1f}", f"{client_ms:.1f}", f"{server_ms:.1f}", f"{both_ms:.1f}")
    return table


def read_server_s(triton: LocalTriton) -> float:
    """Processor seconds so far of Triton and its models."""
    server = psutil.Process(triton.pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def names(results: Path) -> Iterator[str]:
    """The clips of `results.jsonl`."""
    with results.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["video"]


def show(samples: list[Sample], summary: dict[str, object], console: Console) -> None:
    """Ten rows, one a tenth of the clips."""
    total = samples[-1].clips
    table = Table("clips done", "clips a second", "memory, MB", "of its processes, MB", "open files", box=None)
    for tenth in range(10):
        own = [sample for sample in samples if total * tenth / 10 <= sample.clips <= total * (tenth + 1) / 10]
        if len(own) > 1:
            rate = (own[-1].clips - own[0].clips) / (own[-1].time_s - own[0].time_s)
            most = [max(getattr(one, name) for one in own) for name in ("resident_mb", "below_mb", "files")]
            table.add_row(f"{own[-1].clips:,}", f"{rate:.1f}", *(f"{value:.0f}" for value in most))
    console.print(table)


if __name__ == "__main__":
    main()
