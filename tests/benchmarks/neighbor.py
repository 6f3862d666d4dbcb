"""What a busy neighbor costs: the demo model next to a process that keeps one core busy, by how long threads spin.

    python -m tests.benchmarks.neighbor

Clips per second of a real Triton on this machine, one clip at a time, alone and next to one busy process. Measured with
GNU OpenMP's default spinning, with less, and with what `asl-triton serve` sets (`GOMP_SPINCOUNT`).
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asl_triton.transport.factory import make_transport
from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.triton_binary import CPU_SETTINGS
from asl_triton_export.exporter import fastest_precision
from tests.benchmarks.sending import export

SPINNING = "GOMP_SPINCOUNT"
ROUNDS = {
    "GNU OpenMP's default, 300,000": "300000",
    "100": "100",
    "1,000": "1000",
    "as served, 10,000": CPU_SETTINGS[SPINNING],
}
NUM_FRAMES = 64
BUSY = "while True: pass"


def main() -> None:
    """Measure each setting alone and next to a neighbor, and print clips per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    seconds = parser.parse_args().seconds
    table = Table("rounds of spinning", "clips/s alone", "clips/s next to a busy process", box=None)
    with tempfile.TemporaryDirectory() as name:
        export(Path(name), demo=True, precision=fastest_precision())
        for what, rounds in ROUNDS.items():
            os.environ[SPINNING] = rounds
            with LocalTriton(Path(name) / "models") as triton:
                alone = asyncio.run(measure_throughput(triton, seconds))
                with run_neighbor():
                    disturbed = asyncio.run(measure_throughput(triton, seconds))
            table.add_row(what, f"{alone:.1f}", f"{disturbed:.1f}")
    Console(width=110).print(table)


@contextmanager
def run_neighbor() -> Iterator[None]:
    """Run a process that keeps a core busy during the block."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def measure_throughput(triton: LocalTriton, seconds: float) -> float:
    """Measure how many clips of 64 frames per second Triton answers, one after another."""
    transport = make_transport(triton.address)
    frames = {"FRAMES__0": np.random.default_rng(0).integers(0, 256, (1, NUM_FRAMES, 224, 224, 3), np.uint8)}
    (model, *_) = [name for name in triton.models if not name.startswith("recognize_sign")]
    try:
        for _ in range(5):
            await transport.infer(model, frames, ["LOGITS__0"])
        began_s, count = time.perf_counter(), 0
        while time.perf_counter() - began_s < seconds:
            await transport.infer(model, frames, ["LOGITS__0"])
            count += 1
        return count / (time.perf_counter() - began_s)
    finally:
        await transport.close()


if __name__ == "__main__":
    main()
