"""An archive of many clips through `asl-triton batch`: do speed and memory stay the same from start to end?

    python -m tests.benchmarks.archive --clips 10000

The clips are a few short ones of the demo signer under many names (hard links). The demo model runs in a real Triton on
this machine. The command runs as users run it and is observed from outside: clips per second from its journal, its open
files, and the memory of its process and of all processes below it. Then it runs again, with nothing left to do.

    python -m tests.benchmarks.archive --clips 300 --against ../other-checkout --rounds 5

This checkout and another one process the same archive in turns, with one server.
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
from tests.benchmarks.decoding import read_ended_children_s
from tests.benchmarks.sending import export

DISTINCT = 20  # clips that are rendered
EVERY_NTH_FRAME = 6
SIZE = (160, 120)
CLIPS_PER_FOLDER = 500
SAMPLE_S = 0.5
MB = 1e6


@dataclasses.dataclass(frozen=True)
class Sample:
    """The run at one moment. `below_mb` is the memory of all processes that the command started."""

    time_s: float
    clips: int
    resident_mb: float
    below_mb: float
    files: int


def main() -> None:
    """Make the archive, run the command twice, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("options", nargs="*", help="options of `asl-triton batch`, after --")
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each checkout")
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
            again_samples, again = watch(command, folder / "out" / JOURNAL)
        doubled = arguments.clips - len(set(read_names(folder / "out" / "results.jsonl")))
    show(samples, summary, console)
    console.print(f"results {summary['recognized']:,}, failed {len(summary['failures'])}, doubled or lost {doubled}")
    console.print(
        f"the same command again: {again_samples[-1].time_s:.1f} s, {again['known_before']:,} known, "
        f"at most {max(sample.resident_mb for sample in again_samples):.0f} MB"
    )
    console.print(json.dumps(summary["pace"]))


def make_archive(folder: Path, count: int) -> None:
    """Fill sub-folders with `count` clips, which are hard links to a few distinct ones."""
    originals = folder.parent / "originals"
    originals.mkdir()
    for number in range(DISTINCT):
        clip = render(SIGNS[number % len(SIGNS)], seed=number)
        frames = np.stack([cv2.resize(frame, SIZE) for frame in clip.frames[::EVERY_NTH_FRAME]])
        short = dataclasses.replace(clip, frames=frames, fps=clip.fps / EVERY_NTH_FRAME)
        write_video(short, originals / f"{number}.mp4")
    for number in range(count):
        path = folder / f"{number // CLIPS_PER_FOLDER:03}" / f"{number:06}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(originals / f"{number % DISTINCT}.mp4", path)


def watch(command: list[str], journal: Path) -> tuple[list[Sample], dict[str, object]]:
    """Run the command. Returns samples taken while it ran, and its summary."""
    began_s, samples, offset, clips = time.perf_counter(), list[Sample](), 0, -1  # the first line is not a clip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            if journal.exists():
                with journal.open("rb") as lines:
                    lines.seek(offset)
                    new = lines.read()
                offset, clips = offset + len(new), clips + new.count(b"\n")
            try:
                below = sum(child.memory_info().rss for child in process.children(recursive=True))
                own, files = process.memory_info().rss / MB, process.num_fds()
                samples.append(Sample(time.perf_counter() - began_s, max(clips, 0), own, below / MB, files))
            except psutil.Error:  # the command has just ended
                pass
            time.sleep(SAMPLE_S)
        assert running.stdout is not None
        summary = json.loads(running.stdout.read())
    return samples, summary


def compare(command: list[str], checkouts: dict[str, Path], rounds: int, triton: LocalTriton) -> Table:
    """Run both checkouts in turns. The table has medians of clips per second and of CPU milliseconds per clip."""
    turns: dict[str, list[tuple[float, float, float]]] = {which: [] for which in checkouts}
    for number in range(rounds):
        for which, folder in list(checkouts.items())[:: 1 if number % 2 else -1]:
            environment = {**os.environ, "PYTHONPATH": str(folder / "client")}
            began_s, before_s, server_s = time.perf_counter(), read_ended_children_s(), read_server_s(triton)
            done = subprocess.run(
                [*command, "--fresh"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
            )
            seconds = time.perf_counter() - began_s
            clips = json.loads(done.stdout)["recognised"]  # the name that every version writes
            each_ms = (
                1000 * (read_ended_children_s() - before_s) / clips,
                1000 * (read_server_s(triton) - server_s) / clips,
            )
            turns[which].append((clips / seconds, *each_ms))
            print(
                f"{which}: {clips / seconds:.1f} clips per second, {each_ms[0]:.1f} and {each_ms[1]:.1f} ms", flush=True
            )
    table = Table("checkout", "clips/s", "client and decoders, CPU ms", "server, CPU ms", "both, CPU ms", box=None)
    for which, runs in turns.items():
        rate, client_ms, server_ms, both_ms = np.median([(*run, run[1] + run[2]) for run in runs], axis=0)
        table.add_row(which, f"{rate:.1f}", f"{client_ms:.1f}", f"{server_ms:.1f}", f"{both_ms:.1f}")
    return table


def read_server_s(triton: LocalTriton) -> float:
    """CPU seconds of Triton and its models so far."""
    server = psutil.Process(triton.pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def read_names(results: Path) -> Iterator[str]:
    """The names of the clips in `results.jsonl`."""
    with results.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["video"]


def show(samples: list[Sample], summary: dict[str, object], console: Console) -> None:
    """Print one row for each tenth of the clips."""
    total = samples[-1].clips
    table = Table("clips done", "clips/s", "memory, MB", "child processes, MB", "open files", box=None)
    for tenth in range(10):
        own = [sample for sample in samples if total * tenth / 10 <= sample.clips <= total * (tenth + 1) / 10]
        if len(own) > 1:
            rate = (own[-1].clips - own[0].clips) / (own[-1].time_s - own[0].time_s)
            peaks = [max(getattr(sample, name) for sample in own) for name in ("resident_mb", "below_mb", "files")]
            table.add_row(f"{own[-1].clips:,}", f"{rate:.1f}", *(f"{peak:.0f}" for peak in peaks))
    console.print(table)


if __name__ == "__main__":
    main()
