"""A clip's way against what it cannot go below: FFmpeg's decoding, and the network's bare forward.

    python -m tests.benchmarks.path

Two comparisons, each with its ways in turns so that noise meets all alike, and medians of processor time: of this
process, its decoders, and Triton with its models. Clips are the demo signer's, 64 frames of 256 x 256.

The client: decoding, cropping and sending to a model that answers zeros without a look at its frames, by gRPC and
through shared memory, against FFmpeg's own program, which decodes the same file to raw frames on one thread and drops
them (`-f null`). Without the time the program takes to start: it decodes the clip many times over in one run.

The server: OpenVINO in bf16 with random weights at full width: the bare forward in this process; through Triton with
frames that are ready; and the whole way from a clip's path to its glosses. Everything on the same two processors.
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
from tests.networks import small_network

PRESET = PRESETS["wlasl"]
CLIPS = 10  # of a way in one turn, so that the kernel's clock of 10 ms is fine enough
LABELS = tuple(f"gloss {n}" for n in range(2000))


@dataclass(frozen=True)
class Row:
    """One way: milliseconds per clip, medians over the turns, and how many times the first way's processor time."""

    way: str
    processor_ms: float
    elapsed_ms: float
    times_the_first: float


def main() -> None:
    """Measure both comparisons, print them, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each way has its turn")
    parser.add_argument("--only", choices=("client", "server"), help="one of the two comparisons")
    parser.add_argument("--output", type=Path, default=Path("build") / "path.json", help="the same as JSON")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    found: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name:
        clip = write_clip(Path(name) / "clips" / "clip.mp4", 0)
        if arguments.only != "server":
            found["client"] = asyncio.run(compare_client(clip, Path(name) / "nothing", arguments.rounds))
        if arguments.only != "client":
            found["server"] = asyncio.run(compare_server(clip, Path(name) / "models", arguments.rounds))
    for what, rows in found.items():
        print(
            f"\n{what}: ms per clip\n\n| way | processor | elapsed | times the first, processor |\n|---|---:|---:|---:|"
        )
        for row in rows:
            print(f"| {row.way} | {row.processor_ms:.1f} | {row.elapsed_ms:.1f} | {row.times_the_first:.2f} |")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({what: list(map(asdict, rows)) for what, rows in found.items()}, indent=1))
    print(f"\nwritten: {arguments.output}")


async def compare_client(clip: Path, repository: Path, rounds: int) -> list[Row]:
    """FFmpeg's program, and decoding, cropping and sending by each transport."""
    write_stranger(repository, NOTHING, NOTHING_CONFIG)
    pool = make_decoder_pool("processes", 60)
    assert pool is not None
    with LocalTriton(repository, shared_memory=True) as triton:
        async with AsyncExitStack() as stack:
            ways: dict[str, Callable[[], Awaitable[object]]] = {
                "FFmpeg's program": partial(asyncio.to_thread, decode_by_program, clip)
            }
            for way in WAYS:
                transport = make_transport(triton.address, shared_memory=way)
                stack.push_async_callback(transport.close)
                ways[f"decoded, cropped and sent, {way}"] = partial(send_clips, transport, pool, clip)
            rows = await compare(ways, rounds, CLIPS, without=triton)
    pool.close()
    return rows


def decode_by_program(clip: Path) -> None:
    """Decode a clip several times over with FFmpeg's own program."""
    one_thread = ["-threads", "1", "-filter_threads", "1", "-stream_loop", str(CLIPS - 1)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *one_thread, "-i", str(clip), "-f", "null", "-"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


async def send_clips(transport: Transport, pool: DecoderPool, clip: Path) -> None:
    """Decode and crop a clip several times in a process of its own, and send its window to a model."""
    for _ in range(CLIPS):
        with pool.create_session(clip, WindowingOptions(PRESET, Limits(), finds_signer=True)) as session:
            await asyncio.to_thread(session.open)
            for window, _ in await asyncio.to_thread(list, session.windows()):
                await transport.infer(NOTHING, {FRAMES: window.frames[None]}, [OUTPUTS[NOTHING]])


async def compare_server(clip: Path, repository: Path, rounds: int) -> list[Row]:
    """The bare forward, requests with frames that are ready, and whole clips."""
    precision = fastest_precision("openvino")
    state = small_network(len(LABELS), width=1.0).state_dict()
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
                ways[f"through Triton, frames ready, {way}"] = partial(
                    transport.infer, "i3d", {FRAMES: frames}, [LOGITS]
                )
                ways[f"from the clip's path to its glosses, {way}"] = partial(recognizer.recognize, clip)
            return await compare(ways, rounds, 1)


async def compare(
    ways: Mapping[str, Callable[[], Awaitable[object]]], rounds: int, clips: int, without: LocalTriton | None = None
) -> list[Row]:
    """Each way in each round, after one to warm up; a way takes `clips` clips in a turn. The order changes.

    The processor time is that of all processes here, `without` those of a Triton.
    """
    processor: dict[str, list[float]] = {way: [] for way in ways}
    elapsed: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in list(ways.items())[:: 1 if number % 2 else -1]:
            began_s, before_s = time.perf_counter(), read_processor_s(without)
            await run()
            if number:
                elapsed[way].append(1000 * (time.perf_counter() - began_s) / clips)
                processor[way].append(1000 * (read_processor_s(without) - before_s) / clips)
                print(f"{way}: {processor[way][-1]:.1f} ms of a processor", flush=True)
    first = statistics.median(next(iter(processor.values())))
    return [
        Row(way, statistics.median(times), statistics.median(elapsed[way]), statistics.median(times) / first)
        for way, times in processor.items()
    ]


def read_processor_s(without: LocalTriton | None) -> float:
    """Processor time so far of this process, of those that it has started, and of those that have ended, to the
    nanosecond: psutil's has 10 ms."""
    running = psutil.Process().children(recursive=True)
    if without is not None:
        own = psutil.Process(without.supervisor_pid)
        left_out = {process.pid for process in (own, *own.children(recursive=True))}
        running = [process for process in running if process.pid not in left_out]
    total = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    for process in running:
        with suppress(OSError):  # it has just ended
            total += time.clock_gettime(~process.pid << 3 | 2)  # clock_getcpuclockid(3) of Linux
    return total


if __name__ == "__main__":
    main()
