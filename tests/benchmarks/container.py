"""The production entry point on a CPU: next to a busy process, and with many long clips at once.

    python -m tests.benchmarks.container

The wheel's Triton runs with the production flags. First, two Tritons answer clips of 64 frames in turns, next to a
process that keeps one core busy: one has the `GOMP_SPINCOUNT` that the entry point sets, the other GNU OpenMP's default
of 300,000. Then 9 clips of 300 frames are sent at once: how many are answered, how soon, and the peak memory of all
processes of Triton (PSS, so that shared pages count once). Weights are random and full-width, unless `--demo` is given.
"""

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from asl_triton.transport.base import Transport
from asl_triton.transport.factory import make_transport
from asl_triton_deploy.triton_binary import CPU_SETTINGS
from tests.benchmarks.neighbor import run_neighbor
from tests.benchmarks.sending import export
from tests.deploy.entry_point import lay_out_image, run_entry_point

SPINNING = "GOMP_SPINCOUNT"
WAYS: dict[str, dict[str, str]] = {
    f"as set, {int(CPU_SETTINGS[SPINNING]):,}": {},
    "GNU OpenMP's default, 300,000": {SPINNING: "300000"},
}
NUM_LONG_CLIPS, LONG_FRAMES, SHORT_FRAMES = 9, 300, 64
SAMPLE_EVERY_S = 0.1


def main() -> None:
    """Measure both cases and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10, help="clips for each Triton next to the busy process")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--demo", action="store_true", help="the demo checkpoint, a small network")
    arguments = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder, arguments.demo, arguments.precision)
        image = lay_out_image(folder / "models", folder)
        with ExitStack() as running, run_neighbor():
            addresses = [running.enter_context(run_server({**image, **way}))[1] for way in WAYS.values()]
            seconds = asyncio.run(send_in_turns(addresses, arguments.clips))
        table = Table("rounds of spinning", "clips", "median s", "min s", "max s", box=None)
        for way, each in zip(WAYS, seconds, strict=True):
            table.add_row(way, str(len(each)), *(f"{f(each):.2f}" for f in (statistics.median, min, max)))
        console.print(table)
        with run_server(image) as (process, address), sample_memory(process) as peak:
            began_s = time.perf_counter()
            answers = asyncio.run(send_together(address))
            took_s = time.perf_counter() - began_s
        answered = [answer for answer in answers if isinstance(answer, float)]
        console.print(
            f"{NUM_LONG_CLIPS} clips of {LONG_FRAMES} frames at once: {len(answered)} answered, the first after "
            f"{min(answered, default=0.0):.1f} s, all after {took_s:.1f} s; "
            f"peak {max(peak) / 2**30:.2f} GiB, {peak[0] / 2**30:.2f} before"
        )
        for error in (answer for answer in answers if not isinstance(answer, float)):
            console.print(f"not answered: {error}")


@contextmanager
def run_server(image: dict[str, str]) -> Iterator[tuple[psutil.Popen, str]]:
    """Run the entry point for the block. Yields its process and its gRPC address."""
    with (
        tempfile.TemporaryDirectory() as folder,
        run_entry_point({**image, "ASL_TRITON_SERVED": f"{folder}/run/models"}, Path(folder), startup_s=600) as (
            process,
            (_http, grpc, _metrics),
        ),
    ):
        yield process, f"127.0.0.1:{grpc}"


async def send_in_turns(addresses: list[str], count: int) -> list[list[float]]:
    """Send short clips to the servers in turns. Returns each server's seconds per clip, without the first round."""
    transports = [make_transport(address) for address in addresses]
    try:
        rounds = [[await send_clip(transport, SHORT_FRAMES) for transport in transports] for _ in range(count + 1)]
    finally:
        for transport in transports:
            await transport.close()
    return [list(each) for each in zip(*rounds[1:], strict=True)]


async def send_together(address: str) -> list[float | BaseException]:
    """Send all long clips at once. Returns the seconds, or the error, of each."""
    transport = make_transport(address, timeout_s=900)
    try:
        return await asyncio.gather(
            *(send_clip(transport, LONG_FRAMES) for _ in range(NUM_LONG_CLIPS)), return_exceptions=True
        )
    finally:
        await transport.close()


async def send_clip(transport: Transport, num_frames: int) -> float:
    """Send a clip. Returns the seconds until it is answered."""
    frames = np.random.default_rng(0).integers(0, 256, (1, num_frames, 224, 224, 3), np.uint8)
    began_s = time.perf_counter()
    answer = await transport.infer("i3d", {"FRAMES__0": frames}, ["LOGITS__0"])
    assert np.isfinite(answer["LOGITS__0"]).all()
    return time.perf_counter() - began_s


@contextmanager
def sample_memory(process: psutil.Process) -> Iterator[list[int]]:
    """Sample the memory, in bytes, of a process and its children during the block."""
    samples = [measure_memory(process)]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            samples.append(measure_memory(process))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def measure_memory(process: psutil.Process) -> int:
    """The proportional set size of a process and its children, in bytes."""
    total = 0
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += member.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
