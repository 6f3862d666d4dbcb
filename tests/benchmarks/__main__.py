"""`make bench`: speed and memory of the whole path, compared with the network as trained on the same clips.

The first row does what ASL_Inference does: read a clip, resize it, run the network as trained in eager float32, and go
on to the next clip. The last rows are `asl-triton`: the exported network in a real Triton, and a client that decodes
clips on the same machine. Machines are noisy, so read the ratios. Weights are random, as they do not affect speed.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.transport.base import Statistics
from asl_triton.transport.factory import make_transport
from asl_triton.transport.shm import Sharing
from asl_triton.transport.triton_grpc import BULK_PRIORITY
from asl_triton.video.discovery import Clip
from asl_triton.video.reader import open_video
from asl_triton_demo.signer import render
from asl_triton_demo.signs import SIGNS
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import Checkpoint
from asl_triton_export.exporter import export_model, fastest_precision
from asl_triton_export.formats.torchscript import ServedI3D
from asl_triton_export.i3d import I3D, normalize
from tests.networks import build_small_network

NUM_FRAMES = 64
FLOP_PER_CLIP = 222e9
MEMORY_CLIPS = (20, 200)
WIDTH = 125  # of the table, in characters


@dataclass(frozen=True)
class Row:
    """One way to do the work: seconds per clip, and what the client and the server measured."""

    what: str
    seconds: float
    p50_s: float | None = None
    p95_s: float | None = None
    queue_s: float | None = None
    compute_s: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--clips", type=int, default=12, help="number of clips to render")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each bare forward")
    parser.add_argument(
        "--output", type=Path, default=Path("build") / "benchmark.json", help="JSON file for the figures"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    console = Console(width=WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        rows, memory = measure(Path(folder), arguments.clips, arguments.rounds, console)
    show(rows, memory, console)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"rows": [asdict(row) for row in rows], "peak_memory_mb": memory}, indent=1))
    console.print(f"written: {arguments.output}")


def measure(folder: Path, num_clips: int, rounds: int, console: Console) -> tuple[list[Row], dict[int, float]]:
    """Measure all rows, and the client's peak memory in MB by number of clips."""
    with console.status("Rendering clips"):
        clips = [write_clip(folder / "clips" / f"{n:03}.mp4", n) for n in range(num_clips)]
    net = build_small_network(2000, width=1.0)
    precision = fastest_precision()
    with console.status("As trained, one clip after another"):
        rows = [measure_as_trained(net, clips)]
    with console.status("Bare forwards"):
        rows += measure_bare_forwards(net, precision, rounds)
    with console.status("Exporting and serving"):
        checkpoint = Checkpoint(folder / "random.pt", "0" * 64, net.state_dict(), 2000, 3, 1.0)
        labels = tuple(f"gloss {n}" for n in range(2000))
        export_model(checkpoint, labels, PRESETS["wlasl"], folder / "models", "i3d", precision=precision)
        with LocalTriton(folder / "models", shared_memory=True) as triton:
            rows.append(
                asyncio.run(measure_served(triton.address, clips, 1, f"served {precision}: one clip after another"))
            )
            rows.append(
                asyncio.run(measure_served(triton.address, clips, 4, f"served {precision}: four clips at once"))
            )
    with console.status("Memory over many clips"):
        memory = measure_client_memory(folder, clips)
    return rows, memory


def write_clip(path: Path, number: int) -> Path:
    """Render a sign to a file: 64 frames, 256 x 256, H.264 as in WLASL."""
    path.parent.mkdir(exist_ok=True)
    clip = render(SIGNS[number % len(SIGNS)], number, size=(256, 256), num_frames=NUM_FRAMES, fps=25.0)
    writer = imageio_ffmpeg.write_frames(str(path), (256, 256), fps=25, codec="libx264", macro_block_size=1)
    writer.send(None)
    for frame in clip.frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def measure_as_trained(net: I3D, clips: list[Path]) -> Row:
    """For each clip in turn: read, resize to 224 x 224, stack, run the network."""
    times = []
    for path in clips:
        began = time.perf_counter()
        with open_video(path) as video:
            frames = np.stack([cv2.resize(frame.image, (224, 224))[..., ::-1] for frame in video])
        # (T, H, W, C) -> (1, C, T, H, W)
        x = torch.from_numpy(frames.astype(np.float32) / 255).permute(3, 0, 1, 2)[None]
        with torch.inference_mode():
            net(x).step_logits.mean(dim=1).softmax(dim=1)
        times.append(time.perf_counter() - began)
    return build_row("as trained, eager float32, one clip after another", times)


def measure_bare_forwards(net: I3D, precision: str, rounds: int) -> list[Row]:
    """The forward alone, on 64 frames, as trained and exported. They take turns, so that noise affects all alike."""
    frames = torch.randint(0, 256, (1, NUM_FRAMES, 224, 224, 3), dtype=torch.uint8)
    preset = PRESETS["wlasl"]
    x = normalize(frames, preset)
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    ways: dict[str, Callable[[], object]] = {"bare forward, as trained, eager float32": lambda: net(x)}
    for name in dict.fromkeys(("fp32", precision)):
        scripted = torch.jit.script(ServedI3D(net, preset, dtypes[name]).eval())
        ways[f"bare forward, exported {name}"] = lambda scripted=scripted: scripted(frames)
    times: dict[str, list[float]] = {what: [] for what in ways}
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for turn in range(rounds + 1):
            for what, forward in ways.items():
                began = time.perf_counter()
                forward()
                if turn:  # the first turn warms up
                    times[what].append(time.perf_counter() - began)
    return [build_row(what, seconds) for what, seconds in times.items()]


async def measure_served(address: str, clips: list[Path], at_once: int, what: str, sharing: Sharing = "grpc") -> Row:
    """The whole path, each clip twice: decode, crop, send by gRPC or shared memory, infer, rank."""
    transport = make_transport(address, shared_memory=sharing)
    remaining = iter([Clip(path, path.name) for path in clips] * 2)
    latencies: list[float] = []

    async def work(recognizer: AsyncRecognizer) -> None:
        for clip in remaining:
            began = time.perf_counter()
            await recognizer.recognize(clip.path)
            latencies.append(time.perf_counter() - began)

    async with AsyncRecognizer(transport=transport, priority=BULK_PRIORITY) as recognizer:
        await recognizer.recognize(clips[0])
        before = await transport.statistics("i3d")
        began = time.perf_counter()
        await asyncio.gather(*(work(recognizer) for _ in range(at_once)))
        seconds = time.perf_counter() - began
        after = await transport.statistics("i3d")
    queue_s, compute_s = compute_times_per_request(before, after)
    quantiles = np.quantile(latencies, [0.5, 0.95])
    return Row(what, seconds / len(latencies), quantiles[0], quantiles[1], queue_s, compute_s)


def compute_times_per_request(before: Statistics, after: Statistics) -> tuple[float, float]:
    """Queue and compute seconds per request, from Triton's own counters."""
    requests = after.requests - before.requests
    return (after.queue_s - before.queue_s) / requests, (after.compute_s - before.compute_s) / requests


def measure_client_memory(folder: Path, clips: list[Path]) -> dict[int, float]:
    """Peak resident memory of `asl-triton batch` in MB by number of clips, with a small network."""
    checkpoint = Checkpoint(folder / "small.pt", "0" * 64, build_small_network().state_dict(), 7, 3, 1 / 16)
    export_model(checkpoint, tuple("abcdefg"), PRESETS["wlasl"], folder / "small", "small")
    peaks = {}
    with LocalTriton(folder / "small", shared_memory=True) as triton:
        for count in MEMORY_CLIPS:
            many = folder / f"clips{count}"
            many.mkdir()
            for n in range(count):
                os.link(clips[n % len(clips)], many / f"{n:04}.mp4")
            command = [sys.executable, "-m", "asl_triton", "batch", str(many), "--server", triton.address]
            command += ["--output", str(folder / f"out{count}")]
            peaks[count] = measure_peak_memory_mb(command)
    return peaks


def measure_peak_memory_mb(command: list[str]) -> float:
    """Run a command to its end and return its peak memory, from the kernel's high-water mark."""
    peak_kb = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            # This is the process's own peak. getrusage would include the parent's memory, from before the exec.
            marks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
            peak_kb = max([peak_kb, *map(int, marks)])
            time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return peak_kb / 1024


def build_row(what: str, times: list[float]) -> Row:
    """Build a row from separate measurements, with their median."""
    return Row(what, statistics.median(times), *np.quantile(times, [0.5, 0.95]).tolist())


def show(rows: list[Row], memory: dict[int, float], console: Console) -> None:
    """Print the table, with ratios to the first row and to the bare forward of the exported network."""
    table = Table(title=f"{NUM_FRAMES}-frame clips, {torch.get_num_threads()} threads", title_justify="left")
    for column in ("what", "s per clip", "times as fast", "TFLOP/s", "p50 s", "p95 s", "queue s", "compute s"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for r in rows:
        others = (r.p50_s, r.p95_s, r.queue_s, r.compute_s)
        table.add_row(
            r.what,
            f"{r.seconds:.3f}",
            f"{rows[0].seconds / r.seconds:.2f}",
            f"{FLOP_PER_CLIP / r.seconds / 1e12:.2f}",
            *("" if value is None else f"{value:.3f}" for value in others),
        )
    console.print(table)
    bare, *whole = (r.seconds for r in rows[-3:])
    console.print(f"bare forward: {rows[1].seconds / bare:.1f} times as fast as the bare forward as trained")
    overheads = " and ".join(f"{seconds / bare - 1:+.0%}" for seconds in whole)
    console.print(f"whole path, in the order of the rows: {overheads} over the bare forward of the exported network")
    peaks = ", ".join(f"{peak:.0f} MB over {count} clips" for count, peak in memory.items())
    console.print(f"client's peak memory: {peaks}")


if __name__ == "__main__":
    main()
