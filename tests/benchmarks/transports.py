"""`python -m tests.benchmarks.transports`: gRPC messages compared with system shared memory on one machine.

Both ways send the same frames to one Triton, in turns, so that noise affects both alike. The table has latency, clips
per second, and the CPU time per clip of the client and of Triton with its stubs. There are two models: one that ignores
its frames and answers zeros, so that only the transport costs anything, and the demo checkpoint in the precision that
is fastest on this machine. Frames are prepared, so the figures do not include decoding. Stop other programs first, and
read the ratios.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from asl_triton.models.served import FRAMES
from asl_triton.presets import INPUT_SIZE, PRESETS
from asl_triton.transport.base import Transport
from asl_triton.transport.factory import make_transport
from asl_triton.transport.shm import Sharing
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import load_checkpoint, read_labels_for
from asl_triton_export.exporter import export_model, fastest_precision
from tests.live.conftest import write_stranger
from tests.paths import DEMO_BUNDLE

WAYS: tuple[Sharing, ...] = ("grpc", "shm")
AT_ONCE = (1, 4)
NUM_FRAMES = 64
NOTHING, DEMO = "nothing", "demo"
OUTPUTS = {NOTHING: "SUM__0", DEMO: "LOGITS__0"}
NOTHING_CONFIG = f"""
backend: "python"
max_batch_size: 0
input [{{ name: "FRAMES__0", data_type: TYPE_UINT8, dims: [-1, -1, {INPUT_SIZE}, {INPUT_SIZE}, 3] }}]
output [{{ name: "SUM__0", data_type: TYPE_FP32, dims: [1] }}]
instance_group [{{ kind: KIND_CPU }}]
"""


@dataclass
class Measurement:
    """One way to one model, with `at_once` clips in flight: latencies, seconds and CPU time of all clips."""

    model: str
    at_once: int
    sharing: Sharing
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    client_cpu_s: float = 0.0
    triton_cpu_s: float = 0.0


@dataclass(frozen=True)
class Row:
    """A measurement per clip, in milliseconds."""

    model: str
    at_once: int
    sharing: Sharing
    p50_ms: float
    p95_ms: float
    clips_a_second: float
    client_cpu_ms: float
    triton_cpu_ms: float

    @classmethod
    def from_measurement(cls, measured: Measurement) -> "Row":
        m, clips = measured, len(measured.latencies_s)
        p50_s, p95_s = np.quantile(m.latencies_s, [0.5, 0.95]).tolist()
        cpu_ms = (1000 * m.client_cpu_s / clips, 1000 * m.triton_cpu_s / clips)
        return cls(m.model, m.at_once, m.sharing, 1000 * p50_s, 1000 * p95_s, clips / m.seconds, *cpu_ms)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.transports", description=__doc__)
    parser.add_argument("--requests", type=int, default=25, help="clips per turn")
    parser.add_argument("--turns", type=int, default=8, help="turns of each way per row")
    parser.add_argument(
        "--output", type=Path, default=Path("build") / "transports.json", help="JSON file for the figures"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as name:
        with console.status("Exporting"):
            export(Path(name))
        with LocalTriton(Path(name), shared_memory=True) as triton, console.status("Measuring"):
            rows = asyncio.run(measure(triton, arguments.requests, arguments.turns))
    show(rows, console)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    console.print(f"written: {arguments.output}")


def export(repository: Path) -> None:
    """Write both models."""
    write_stranger(repository, NOTHING, NOTHING_CONFIG)
    bundle = open_bundle(DEMO_BUNDLE)
    assert bundle.labels is not None
    checkpoint = load_checkpoint(bundle.weights)
    labels = read_labels_for(checkpoint, bundle.labels)
    export_model(checkpoint, labels, PRESETS["wlasl"], repository, DEMO, precision=fastest_precision())


async def measure(triton: LocalTriton, requests: int, turns: int) -> list[Row]:
    """Measure all rows. The way that goes first alternates from turn to turn."""
    rows = []
    async with AsyncExitStack() as stack:
        transports = {way: make_transport(triton.address, shared_memory=way) for way in WAYS}
        for transport in transports.values():
            stack.push_async_callback(transport.close)
        for model in OUTPUTS:
            for at_once in AT_ONCE:
                measurements = {way: Measurement(model, at_once, way) for way in WAYS}
                for way in WAYS:  # to warm up
                    await send_clips(transports[way], triton, Measurement(model, at_once, way), 2 * at_once)
                for turn in range(turns):
                    for way in WAYS if turn % 2 else reversed(WAYS):
                        await send_clips(transports[way], triton, measurements[way], requests)
                rows += map(Row.from_measurement, measurements.values())
    return rows


async def send_clips(transport: Transport, triton: LocalTriton, measured: Measurement, requests: int) -> None:
    """Send this number of clips, and add to the measurement."""
    draw = np.random.default_rng(0)
    clips = [draw.integers(0, 256, (1, NUM_FRAMES, INPUT_SIZE, INPUT_SIZE, 3), np.uint8) for _ in range(4)]
    remaining = iter(range(requests))

    async def work() -> None:
        for number in remaining:
            began_s = time.perf_counter()
            inputs = {FRAMES: clips[number % len(clips)]}
            await transport.infer(measured.model, inputs, [OUTPUTS[measured.model]])
            measured.latencies_s.append(time.perf_counter() - began_s)

    began_s, client_cpu_s, triton_cpu_s = time.perf_counter(), time.process_time(), read_cpu_s(triton)
    await asyncio.gather(*(work() for _ in range(measured.at_once)))
    measured.seconds += time.perf_counter() - began_s
    measured.client_cpu_s += time.process_time() - client_cpu_s
    measured.triton_cpu_s += read_cpu_s(triton) - triton_cpu_s


def read_cpu_s(triton: LocalTriton) -> float:
    """CPU seconds of Triton and its stubs so far."""
    server = psutil.Process(triton.pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table, with the ratio of shared memory to gRPC below each pair."""
    title = f"{NUM_FRAMES}-frame clips, {os.cpu_count()} cores; ms per clip"
    table = Table(title=title, title_justify="left")
    for column in ("model", "in flight", "way", "p50", "p95", "clips/s", "client's CPU", "Triton's CPU"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    for over_grpc, over_shm in zip(rows[::2], rows[1::2], strict=True):
        pairs = [list_figures(over_grpc), list_figures(over_shm)]
        for row, values in zip((over_grpc, over_shm), pairs, strict=True):
            table.add_row(row.model, str(row.at_once), row.sharing, *(f"{value:.1f}" for value in values))
        table.add_row(
            "",
            "",
            "shm / grpc",
            # The kernel may count no CPU time at all for a few requests.
            *(f"{shm / grpc:.2f}" if grpc else "-" for grpc, shm in zip(*pairs, strict=True)),
        )
        table.add_section()
    console.print(table)


def list_figures(row: Row) -> tuple[float, ...]:
    """List the figures of a row for the table."""
    return row.p50_ms, row.p95_ms, row.clips_a_second, row.client_cpu_ms, row.triton_cpu_ms


if __name__ == "__main__":
    main()
