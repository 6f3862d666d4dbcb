"""A clip's path compared with its lower bounds: FFmpeg's decoding and the network's bare forward.

    python -m tests.benchmarks.path

There are two comparisons. In each, the ways take turns, so that noise affects all alike, and the figures are medians of
the CPU time of this process, its decoders, and Triton with its models. The clip shows the demo signer in 64 frames of
256 x 256.

The client: decoding, cropping and sending, by gRPC and through shared memory, to a model that ignores its frames and
answers zeros. FFmpeg's own program decodes the same file to raw frames on one thread and drops them (`-f null`). It
decodes the clip many times in one run, so that the time to start it does not count.

The server: OpenVINO in bf16 with full-width random weights. The bare forward in this process is compared with requests
to Triton with prepared frames, and with the whole path from a file to its glosses. All run on the same two processors.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import psutil

from asl_triton.decoding.base import WindowingOptions
from asl_triton.decoding.factory import make_decoder_pool
from asl_triton.decoding.pool import DecoderPool
from asl_triton.models.served import FRAMES, LOGITS
from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.transport.base import Transport
from asl_triton.transport.factory import make_transport
from asl_triton.video.reader import Limits
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import Checkpoint
from asl_triton_export.exporter import export_model, fastest_precision
from asl_triton_export.formats import get_format
from tests.benchmarks.__main__ import NUM_FRAMES, write_clip
from tests.benchmarks.transports import NOTHING, NOTHING_CONFIG, OUTPUTS, WAYS
from tests.live.conftest import write_stranger
from tests.networks import build_small_network

PRESET = PRESETS["wlasl"]
CLIPS = 10  # per turn of a way, so that the kernel's 10 ms clock is precise enough
LABELS = tuple(f"gloss {n}" for n in range(2000))


@dataclass(frozen=True)
class Row:
    """One way: milliseconds per clip (medians of the turns), and the ratio to the first way's CPU time."""

    way: str
    processor_ms: float
    elapsed_ms: float
    times_the_first: float


def main() -> None:
    """Measure both comparisons, print them, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each way")
    parser.add_argument("--only", choices=("client", "server"), help="run only one of the comparisons")
    parser.add_argument("--output", type=Path, default=Path("build") / "path.json", help="JSON file for the figures")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    comparisons: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name:
        clip = write_clip(Path(name) / "clips" / "clip.mp4", 0)
        if arguments.only != "server":
            comparisons["client"] = asyncio.run(compare_client(clip, Path(name) / "nothing", arguments.rounds))
        if arguments.only != "client":
            comparisons["server"] = asyncio.run(compare_server(clip, Path(name) / "models", arguments.rounds))
    for what, rows in comparisons.items():
        print(f"\n{what}: ms per clip\n\n| way | CPU | elapsed | CPU, relative to the first |\n|---|---:|---:|---:|")
        for row in rows:
            print(f"| {row.way} | {row.processor_ms:.1f} | {row.elapsed_ms:.1f} | {row.times_the_first:.2f} |")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(
        json.dumps({what: list(map(asdict, rows)) for what, rows in comparisons.items()}, indent=1)
    )
    print(f"\nwritten: {arguments.output}")


async def compare_client(clip: Path, repository: Path, rounds: int) -> list[Row]:
    """Compare FFmpeg's program with decoding, cropping and sending by each transport."""
    write_stranger(repository, NOTHING, NOTHING_CONFIG)
    pool = make_decoder_pool("processes", 60)
    assert pool is not None
    with LocalTriton(repository, shared_memory=True) as triton:
        async with AsyncExitStack() as stack:
            ways: dict[str, Callable[[], Awaitable[object]]] = {
                "FFmpeg's program": partial(asyncio.to_thread, decode_with_ffmpeg, clip)
            }
            for way in WAYS:
                transport = make_transport(triton.address, shared_memory=way)
                stack.push_async_callback(transport.close)
                ways[f"decoded, cropped and sent, {way}"] = partial(send_clips, transport, pool, clip)
            rows = await compare(ways, rounds, CLIPS, excluding=triton)
    pool.close()
    return rows


def decode_with_ffmpeg(clip: Path) -> None:
    """Decode a clip several times with FFmpeg's own program."""
    one_thread = ["-threads", "1", "-filter_threads", "1", "-stream_loop", str(CLIPS - 1)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *one_thread, "-i", str(clip), "-f", "null", "-"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


async def send_clips(transport: Transport, pool: DecoderPool, clip: Path) -> None:
    """Decode and crop a clip several times in a separate process, and send its window to a model."""
    for _ in range(CLIPS):
        with pool.create_session(clip, WindowingOptions(PRESET, Limits(), finds_signer=True)) as session:
            await asyncio.to_thread(session.open)
            for window, _ in await asyncio.to_thread(list, session.windows()):
                await transport.infer(NOTHING, {FRAMES: window.frames[None]}, [OUTPUTS[NOTHING]])


async def compare_server(clip: Path, repository: Path, rounds: int) -> list[Row]:
    """Compare the bare forward with requests with prepared frames, and with whole clips."""
    precision = fastest_precision("openvino")
    state = build_small_network(len(LABELS), width=1.0).state_dict()
    checkpoint = Checkpoint(repository / "random.pt", "0" * 64, state, len(LABELS), 3, 1.0)
    export_model(checkpoint, LABELS, PRESET, repository, "i3d", precision=precision, served_as="openvino")
    network = get_format("openvino").open(repository / "i3d" / "1", precision)
    frames = np.random.default_rng(0).integers(0, 256, (1, NUM_FRAMES, 224, 224, 3), np.uint8)
    with LocalTriton(repository, shared_memory=True) as triton:
        async with AsyncExitStack() as stack:
            ways: dict[str, Callable[[], Awaitable[object]]] = {
                f"bare forward, OpenVINO {precision}": partial(asyncio.to_thread, network, frames)
            }
            for way in WAYS:
                transport = make_transport(triton.address, shared_memory=way)
                recognizer = await stack.enter_async_context(AsyncRecognizer(transport=transport))
                ways[f"through Triton, prepared frames, {way}"] = partial(
                    transport.infer, "i3d", {FRAMES: frames}, [LOGITS]
                )
                ways[f"from a file to its glosses, {way}"] = partial(recognizer.recognize, clip)
            return await compare(ways, rounds, 1)


async def compare(
    ways: Mapping[str, Callable[[], Awaitable[object]]], rounds: int, clips: int, excluding: LocalTriton | None = None
) -> list[Row]:
    """Run each way once per round, in alternating order, after one round to warm up. A turn has `clips` clips.

    The CPU time is that of this process and its children, without those of the Triton `excluding`.
    """
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    elapsed: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in list(ways.items())[:: 1 if number % 2 else -1]:
            began_s, before_s = time.perf_counter(), read_cpu_s(excluding)
            await run()
            if number:
                elapsed[way].append(1000 * (time.perf_counter() - began_s) / clips)
                cpu[way].append(1000 * (read_cpu_s(excluding) - before_s) / clips)
                print(f"{way}: {cpu[way][-1]:.1f} ms of CPU time", flush=True)
    first = statistics.median(next(iter(cpu.values())))
    return [
        Row(way, statistics.median(times), statistics.median(elapsed[way]), statistics.median(times) / first)
        for way, times in cpu.items()
    ]


def read_cpu_s(excluding: LocalTriton | None) -> float:
    """CPU seconds so far of this process and its children, including those that have ended.

    Precise to the nanosecond; psutil is only precise to 10 ms.
    """
    running = psutil.Process().children(recursive=True)
    if excluding is not None:
        own = psutil.Process(excluding.supervisor_pid)
        left_out = {process.pid for process in (own, *own.children(recursive=True))}
        running = [process for process in running if process.pid not in left_out]
    total = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    for process in running:
        with suppress(OSError):  # the process has just ended
            total += time.clock_gettime(~process.pid << 3 | 2)  # like clock_getcpuclockid(3) on Linux
    return total


if __name__ == "__main__":
    main()
