"""What decoding alone costs: from videos to windows of crops, in threads and in separate processes.

    python -m tests.benchmarks.decoding

The same videos are decoded in threads, in processes, and by FFmpeg's own program, in turns. The program decodes to BGR
on one thread and does not crop. The tables show videos per second with one decoder per processor (the program: one
thread), and CPU seconds per video, of this process and of those that it started.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from asl_triton.decoding.base import DecodeSession, WindowingOptions
from asl_triton.decoding.factory import make_decoder_pool
from asl_triton.decoding.in_process import InProcessDecodeSession
from asl_triton.decoding.pool import DecoderPool
from asl_triton.presets import PRESETS
from asl_triton.video.reader import LONG_VIDEO_LIMITS, Limits
from asl_triton_demo.signer import render
from asl_triton_demo.signs import SIGNS
from tests.client.videos import ffmpeg
from tests.paths import SHARED

REAL_CLIPS = SHARED / "wlasl" / "videos"
CLIP = WindowingOptions(PRESETS["wlasl"], Limits())
CUT_FILM = WindowingOptions(replace(PRESETS["wlasl"], max_frames=64), LONG_VIDEO_LIMITS, is_film=True)


@dataclass(frozen=True)
class Kind:
    """Videos of one kind, and how they are cut into windows. `count` of them are decoded per turn."""

    what: str
    paths: Sequence[Path]
    options: WindowingOptions
    count: int


@dataclass
class Cost:
    """The total cost of some videos."""

    videos: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0


def main() -> None:
    """Make the videos, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way")
    arguments = parser.parse_args()
    console = Console(width=110)
    decoders = make_decoder_pool("processes", 60)
    assert decoders is not None
    decoders.warm_up()
    with tempfile.TemporaryDirectory() as folder:
        with console.status("Rendering"):
            kinds = make_kinds(Path(folder))
        with console.status("Decoding"):
            console.print(compare_ways(kinds, decoders, arguments.rounds))
    decoders.close()


def make_kinds(folder: Path) -> list[Kind]:
    """Collect real clips if there are any, and make short and long ones and a film of the demo signer."""
    signs = [write_sign(folder / f"{number}.mp4", number) for number in range(4)]
    as_h264 = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
    long, large, film, phone = (folder / name for name in ("long.mp4", "large.mp4", "film.mp4", "phone.mp4"))
    ffmpeg("-stream_loop", "9", "-i", signs[0], "-frames:v", "300", *as_h264, long)
    middle = folder / "middle.mp4"
    ffmpeg("-stream_loop", "1", "-i", signs[1], "-vf", "scale=736:414", "-frames:v", "68", *as_h264, middle)
    ffmpeg("-stream_loop", "1", "-i", signs[1], "-vf", "scale=1280:720", "-frames:v", "75", *as_h264, large)
    as_hevc = ["-c:v", "libx265", "-preset", "veryfast", "-x265-params", "log-level=none", "-tag:v", "hvc1"]
    ffmpeg("-stream_loop", "1", "-i", signs[3], "-vf", "scale=1920:1080", "-frames:v", "75", *as_hevc, phone)
    ffmpeg("-stream_loop", "99", "-i", signs[2], "-frames:v", "3000", *as_h264, film)
    real = sorted(REAL_CLIPS.glob("*.mp4"))
    kinds = [Kind("WLASL's, 30 and 68 frames, 720p and 414p", real, CLIP, 40)] if real else []
    return [
        *kinds,
        Kind("64 frames, 256 x 256", signs, CLIP, 60),
        Kind("300 frames, 256 x 256", [long], CLIP, 16),
        Kind("a film: 3,000 frames, 256 x 256", [film], CUT_FILM, 4),
        Kind("68 frames, 736 x 414", [middle], CLIP, 20),
        Kind("75 frames, 1280 x 720", [large], CLIP, 10),
        Kind("75 frames, 1920 x 1080, HEVC", [phone], CLIP, 6),
    ]


def write_sign(path: Path, number: int) -> Path:
    """Render a sign of 64 frames to an H.264 file."""
    clip = render(SIGNS[number], number, size=(256, 256), num_frames=64, fps=25.0)
    writer = imageio_ffmpeg.write_frames(str(path), (256, 256), fps=25, codec="libx264", macro_block_size=1)
    writer.send(None)
    for frame in clip.frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def read_cpu_s() -> float:
    """CPU seconds of this process and of its decoders so far."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
            if process.pid != os.getpid():
                total += times.children_user + times.children_system  # workers that have ended
    return total


def compare_ways(kinds: Sequence[Kind], decoders: DecoderPool, rounds: int) -> Table:
    """Measure all ways in turns, over all kinds of videos."""
    at_once = os.cpu_count() or 1
    measures: dict[str, Callable[[Kind], Cost]] = {
        "FFmpeg's program": decode_with_ffmpeg,
        "threads": lambda kind: measure_decoding(kind, InProcessDecodeSession, at_once),
        "processes": lambda kind: measure_decoding(kind, decoders.create_session, at_once),
    }
    costs = {(kind.what, way): Cost() for kind in kinds for way in measures}
    for turn in range(rounds + 1):
        for kind in kinds:
            for way, measure in measures.items():
                cost = measure(kind)
                if turn:  # the first turn warms up
                    sums = costs[kind.what, way]
                    sums.videos += cost.videos
                    sums.seconds += cost.seconds
                    sums.cpu_s += cost.cpu_s
    table = Table(title=f"decode and crop, {at_once} decoders", title_justify="left", box=None)
    for column in ("videos", "way", "videos/s", "CPU s per video", "times FFmpeg's CPU"):
        table.add_column(column, justify="left" if column in ("videos", "way") else "right")
    for (what, way), cost in costs.items():
        ratio = cost.cpu_s / costs[what, "FFmpeg's program"].cpu_s
        rate, each_s = cost.videos / cost.seconds, cost.cpu_s / cost.videos
        table.add_row(what, way, f"{rate:.1f}", f"{each_s:.3f}", f"{ratio:.2f}")
    return table


def measure_decoding(kind: Kind, create: Callable[..., DecodeSession], at_once: int) -> Cost:
    """Measure what it costs to decode videos of a kind, `at_once` at a time."""

    def decode(number: int) -> int:
        with create(kind.paths[number % len(kind.paths)], kind.options) as session:
            session.open()
            return sum(len(window.frames) for window, _ in session.windows())

    began_s, before_s = time.perf_counter(), read_cpu_s()
    with ThreadPoolExecutor(at_once) as threads:
        assert all(threads.map(decode, range(kind.count)))
    seconds = time.perf_counter() - began_s
    time.sleep(0.1)  # the last decoder may still be ending
    return Cost(kind.count, seconds, read_cpu_s() - before_s)


def decode_with_ffmpeg(kind: Kind) -> Cost:
    """Measure what it costs FFmpeg's own program, on one thread, to decode videos of a kind to BGR one by one."""
    began_s, before_s = time.perf_counter(), read_ended_children_s()
    for number in range(kind.count):
        path = kind.paths[number % len(kind.paths)]
        one_thread = ["-threads", "1", "-filter_threads", "1"]
        ffmpeg(
            *one_thread, "-i", path, "-map", "0:V:0", "-pix_fmt", "bgr24", "-fps_mode", "passthrough", "-f", "null", "-"
        )
    return Cost(kind.count, time.perf_counter() - began_s, read_ended_children_s() - before_s)


def read_ended_children_s() -> float:
    """CPU seconds of the child processes that have ended."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


if __name__ == "__main__":
    main()
