"""What decoding costs, and nothing else: videos to windows of crops, in threads and in processes of their own.

    python -m tests.benchmarks.decoding

The same videos, the two ways in turns: videos a second with as many decoders as there are processors, and the
processors' seconds a video, of this process and of the decoders'. Then what it would save to convert no frame that a
preset of 25 a second throws away: which frames those are is only known when the next one is decoded, and then OpenCV no
longer has the one before.
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

import cv2
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
from asl_triton.video.reader import LONG_VIDEO_LIMITS, Limits, open_capture
from asl_triton_demo.signer import render
from asl_triton_demo.signs import SIGNS
from tests.client.videos import ffmpeg
from tests.paths import SHARED

REAL_CLIPS = SHARED / "wlasl" / "videos"
CLIP = WindowingOptions(PRESETS["wlasl"], Limits())
CUT_FILM = WindowingOptions(replace(PRESETS["wlasl"], max_frames=64), LONG_VIDEO_LIMITS, is_film=True)


@dataclass(frozen=True)
class Kind:
    """Videos that are alike, and how they are cut; `count` of them are decoded in a turn."""

    what: str
    paths: Sequence[Path]
    options: WindowingOptions
    count: int


@dataclass
class Cost:
    """What some videos took together."""

    videos: int = 0
    seconds: float = 0.0
    processor_s: float = 0.0


def main() -> None:
    """Make the videos, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured")
    arguments = parser.parse_args()
    console = Console(width=110)
    decoders = make_decoder_pool("processes", 60)
    assert decoders is not None
    decoders.warm_up()
    with tempfile.TemporaryDirectory() as folder:
        with console.status("Rendering"):
            kinds = make_kinds(Path(folder))
        with console.status("Decoding"):
            console.print(ways(kinds, decoders, arguments.rounds))
            console.print(thrown_away(Path(folder), kinds[-1].paths[0], arguments.rounds))
    decoders.close()


def make_kinds(folder: Path) -> list[Kind]:
    """Real clips where they are, short and long ones of the demo signer, and a film of it."""
    signs = [write_sign(folder / f"{number}.mp4", number) for number in range(4)]
    coded = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
    long, large, film = (folder / name for name in ("long.mp4", "large.mp4", "film.mp4"))
    ffmpeg("-stream_loop", "9", "-i", signs[0], "-frames:v", "300", *coded, long)
    ffmpeg("-i", signs[1], "-vf", "scale=1280:720", *coded, large)
    ffmpeg("-stream_loop", "99", "-i", signs[2], "-frames:v", "3000", *coded, film)
    real = sorted(REAL_CLIPS.glob("*.mp4"))
    kinds = [Kind("WLASL's, 30 and 68 frames, 720p and 414p", real, CLIP, 40)] if real else []
    return [
        *kinds,
        Kind("64 frames, 256 x 256", signs, CLIP, 60),
        Kind("300 frames, 256 x 256", [long], CLIP, 16),
        Kind("a film: 3,000 frames, 256 x 256", [film], CUT_FILM, 4),
        Kind("64 frames, 1280 x 720", [large], CLIP, 20),
    ]


def write_sign(path: Path, number: int) -> Path:
    """A rendered sign of 64 frames, H.264."""
    clip = render(SIGNS[number], number, size=(256, 256), num_frames=64, fps=25.0)
    writer = imageio_ffmpeg.write_frames(str(path), (256, 256), fps=25, codec="libx264", macro_block_size=1)
    writer.send(None)
    for frame in clip.frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def processor_s() -> float:
    """Of this process, and of those that decode, so far."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
            if process.pid != os.getpid():
                total += times.children_user + times.children_system  # of the workers that have ended
    return total


def ways(kinds: Sequence[Kind], decoders: DecoderPool, rounds: int) -> Table:
    """Threads and processes in turns, over all kinds of videos."""
    sessions: dict[str, Callable[..., DecodeSession]] = {
        "threads": InProcessDecodeSession,
        "processes": decoders.create_session,
    }
    at_once = os.cpu_count() or 1
    costs = {(kind.what, way): Cost() for kind in kinds for way in sessions}
    for turn in range(rounds + 1):
        for kind in kinds:
            for way, create in sessions.items():
                cost = decoded(kind, create, at_once)
                if turn:  # the first one warms up
                    sums = costs[kind.what, way]
                    sums.videos += cost.videos
                    sums.seconds += cost.seconds
                    sums.processor_s += cost.processor_s
    table = Table(title=f"decode and crop, {at_once} decoders", title_justify="left", box=None)
    for column in ("videos", "in", "videos a second", "processor s a video", "of that of threads"):
        table.add_column(column, justify="left" if column in ("videos", "in") else "right")
    for (what, way), cost in costs.items():
        share = cost.processor_s / costs[what, "threads"].processor_s
        rate, each_s = cost.videos / cost.seconds, cost.processor_s / cost.videos
        table.add_row(what, way, f"{rate:.1f}", f"{each_s:.3f}", f"{share:.2f}")
    return table


def decoded(kind: Kind, create: Callable[..., DecodeSession], at_once: int) -> Cost:
    """What it costs to decode videos of a kind, so many at once."""

    def decode(number: int) -> int:
        with create(kind.paths[number % len(kind.paths)], kind.options) as session:
            session.open()
            return sum(len(window.frames) for window, _ in session.windows())

    began_s, before_s = time.perf_counter(), processor_s()
    with ThreadPoolExecutor(at_once) as threads:
        assert all(threads.map(decode, range(kind.count)))
    seconds = time.perf_counter() - began_s
    time.sleep(0.1)  # the last decoder is still ending
    return Cost(kind.count, seconds, processor_s() - before_s)


def thrown_away(folder: Path, source: Path, rounds: int) -> Table:
    """Decoding 50 frames a second for a preset of 25: all frames converted to BGR, and every other one."""
    table = Table(title="50 frames a second, of which 25 are wanted: ms a frame", title_justify="left", box=None)
    for column in ("frames", "decode and convert all", "convert every other", "gain"):
        table.add_column(column, justify="left" if column == "frames" else "right")
    for size in ("256x256", "640x360", "1280x720", "1920x1080"):
        path = folder / f"{size}.mp4"
        scaled = f"scale={size.replace('x', ':')},fps=50"
        ffmpeg("-i", source, "-vf", scaled, "-c:v", "libx264", "-pix_fmt", "yuv420p", path)
        whole, half = (min(spent(path, step) for _ in range(rounds)) for step in (1, 2))
        table.add_row(size, f"{whole:.2f}", f"{half:.2f}", f"{1 - half / whole:.0%}")
    return table


def spent(path: Path, convert_each: int) -> float:
    """Processor milliseconds a frame, where one of so many is converted."""
    with path.open("rb") as file:
        capture = open_capture(file, path)
        count, began_s = 0, own_s()
        while capture.grab():
            if count % convert_each == 0:
                capture.retrieve()
            count += 1
        seconds = own_s() - began_s
        capture.release()
    return seconds / count * 1e3


def own_s() -> float:
    """Of a processor, that this process has taken."""
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


if __name__ == "__main__":
    cv2.setLogLevel(0)
    main()
