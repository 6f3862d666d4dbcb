"""`python -m tests.benchmarks.transports`: gRPC messages beside system shared memory, on one machine, in one run.

The same frames go to one Triton by both ways, in turns, so that noise meets both alike: latency, clips a second, and
the processor time of the client and of Triton with its stubs, a clip. Two models: one that answers zeros without a
look at its frames, so that nothing but their way costs anything, and the demo checkpoint in the precision that is
fastest here. Frames are ready: decoding is not in the figures. Quiet the machine first; read the ratios.
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
class Measured:
    """One way to one model, with so many clips in flight: seconds, and what the processors did in them."""

    model: str
    at_once: int
    sharing: Sharing
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    client_cpu_s: float = 0.0
    triton_cpu_s: float = 0.0


@dataclass(frozen=True)
class Row:
    """The same a clip, in milliseconds."""

    model: str
    at_once: int
    sharing: Sharing
    p50_ms: float
    p95_ms: float
    clips_a_second: float
    client_cpu_ms: float
    triton_cpu_ms: float

    @classmethod
    def of(cls, measured: Measured) -> "Row":
        m, clips = measured, len(measured.latencies_s)
        p50_s, p95_s = np.quantile(m.latencies_s, [0.5, 0.95]).tolist()
        cpu_ms = (1000 * m.client_cpu_s / clips, 1000 * m.triton_cpu_s / clips)
        return cls(m.model, m.at_once, m.sharing, 1000 * p50_s, 1000 * p95_s, clips / m.seconds, *cpu_ms)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.transports", description=__doc__)
    parser.add_argument("--requests", type=int, default=25, help="clips a turn")
    parser.add_argument("--turns", type=int, default=8, help="how often each way has its turn, for each row")
    parser.add_argument("--output", type=Path, default=Path("build") / "transports.json", help="the same as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as name:
        with console.status("Exporting"):
            export(Path(name))
        with LocalTriton(Path(name), shared_memory=True) as triton, console.status("Asking"):
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
    """All rows; who goes first in a turn changes from turn to turn."""
    rows = []
    async with AsyncExitStack() as stack:
        transports = {way: make_transport(triton.address, shared_memory=way) for way in WAYS}
        for transport in transports.values():
            stack.push_async_callback(transport.close)
        for model in OUTPUTS:
            for at_once in AT_ONCE:
                found = {way: Measured(model, at_once, way) for way in WAYS}
                for way in WAYS:  # warming up
                    await ask(transports[way], triton, Measured(model, at_once, way), 2 * at_once)
                for turn in range(turns):
                    for way in WAYS if turn % 2 else reversed(WAYS):
                        await ask(transports[way], triton, found[way], requests)
                rows += map(Row.of, found.values())
    return rows


async def ask(transport: Transport, triton: LocalTriton, measured: Measured, requests: int) -> None:
    """So many clips; adds to what is measured."""
    draw = np.random.default_rng(0)
    clips = [draw.integers(0, 256, (1, NUM_FRAMES, INPUT_SIZE, INPUT_SIZE, 3), np.uint8) for _ in range(4)]
    waiting = iter(range(requests))

    async def work() -> None:
        for number in waiting:
            began_s = time.perf_counter()
            inputs = {FRAMES: clips[number % len(clips)]}
            await transport.infer(measured.model, inputs, [OUTPUTS[measured.model]])
            measured.latencies_s.append(time.perf_counter() - began_s)

    began_s, client_cpu_s, triton_cpu_s = time.perf_counter(), time.process_time(), cpu_s(triton)
    await asyncio.gather(*(work() for _ in range(measured.at_once)))
    measured.seconds += time.perf_counter() - began_s
    measured.client_cpu_s += time.process_time() - client_cpu_s
    measured.triton_cpu_s += cpu_s(triton) - triton_cpu_s


def cpu_s(triton: LocalTriton) -> float:
    """The processor time that Triton and its stubs have taken."""
    server = psutil.Process(triton.pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def show(rows: Sequence[Row], console: Console) -> None:
    """The table; below each pair, shared memory's share of what gRPC took."""
    title = f"{NUM_FRAMES}-frame clips, {os.cpu_count()} cores; ms a clip"
    table = Table(title=title, title_justify="left")
    for column in ("model", "in flight", "way", "p50", "p95", "clips/s", "client's CPU", "Triton's CPU"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    for grpc, shm in zip(rows[::2], rows[1::2], strict=True):
        pairs = [figures(grpc), figures(shm)]
        for row, values in zip((grpc, shm), pairs, strict=True):
            table.add_row(row.model, str(row.at_once), row.sharing, *(f"{value:.1f}" for value in values))
        table.add_row("", "", "shm / grpc", *(f"{there / here:.2f}" for here, there in zip(*pairs, strict=True)))
        table.add_section()
    console.print(table)


def figures(row: Row) -> tuple[float, ...]:
    """What the table has of a row."""
    return row.p50_ms, row.p95_ms, row.clips_a_second, row.client_cpu_ms, row.triton_cpu_ms


if __name__ == "__main__":
    main()
