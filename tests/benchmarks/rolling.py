"""Replacing servers under load: one client of two Tritons, each stopped with SIGTERM and started again in turn.

    python -m tests.benchmarks.rolling

The network is small, so that the times are mostly those of transport and of stopping servers. In the last row, the
restarted servers have version 2 of the model instead of version 1. Read the ratios, not the seconds.
"""

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from asl_triton.bench.load import ClosedLoop, Load
from asl_triton.presets import PRESETS
from asl_triton.transport.base import Array
from asl_triton.transport.security import Security
from asl_triton.transport.triton_grpc import GrpcTransport
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.deploy.production import API_KEY, ProductionTriton
from tests.networks import GLOSSES, save_checkpoint

MODEL = "signs"
IN_FLIGHT = 4
UNDISTURBED_S = 10.0
RETURN_TIMEOUT_S = 60.0  # by then, the client must use a restarted server again


@dataclass(frozen=True)
class Part:
    """A part of the load. `lost` counts lost requests by error, `resent` those sent again, `answers` the versions that
    answered."""

    label: str
    requests: int
    lost: Counter[str]
    resent: int
    p50_s: float
    p99_s: float
    answers: Counter[str]


@dataclass(frozen=True)
class Versions:
    """Repositories of one model (`old` has version 1, `new` has version 2), a clip, and each version's answer to it."""

    old: Path
    new: Path
    clip: Array
    answers: Mapping[str, Array]

    def find_version(self, logits: Array) -> str:
        """Find the version that gave this answer."""
        return next((name for name, known in self.answers.items() if np.allclose(logits, known, atol=1e-3)), "neither")


def make_versions(folder: Path, num_frames: int = 24) -> Versions:
    """Export two small networks with the same glosses."""
    clip = np.random.default_rng(0).integers(0, 256, (1, num_frames, 224, 224, 3), np.uint8)
    answers = {}
    for version, name in (("1", "old"), ("2", "new")):
        checkpoint = save_checkpoint(folder / f"{name}.pt", seed=int(version))
        export_model(load_checkpoint(checkpoint), GLOSSES, PRESETS["wlasl"], folder / name, MODEL, version=int(version))
        with torch.inference_mode():
            network = torch.jit.load(folder / name / MODEL / version / "model.pt")
            answers[version] = network(torch.from_numpy(clip))[0].numpy()
    return Versions(folder / "old", folder / "new", clip, answers)


@contextmanager
def run_two_servers(repository: Path) -> Iterator[list[ProductionTriton]]:
    """Run two servers for the block. They are ready at its start."""
    with ExitStack() as running:
        yield [running.enter_context(ProductionTriton(repository)) for _ in range(2)]


async def infer_logits(transport: GrpcTransport, clip: Array) -> Array:
    """Send the clip to the model and return its answer."""
    return (await transport.infer(MODEL, {"FRAMES__0": clip}, ["LOGITS__0"]))["LOGITS__0"]


async def measure_under_load(
    servers: Sequence[ProductionTriton],
    versions: Versions,
    label: str,
    meanwhile: Callable[[], Awaitable[None]],
    in_flight: int = IN_FLIGHT,
) -> Part:
    """Send requests through one client for as long as `meanwhile` takes."""
    address = ",".join(server.address for server in servers)
    transport = GrpcTransport(address, security=Security(api_key=API_KEY), in_flight=in_flight)
    answers: list[Array] = []

    async def send() -> None:
        answers.append(await infer_logits(transport, versions.clip))

    load = Load(ClosedLoop(in_flight), send, time.monotonic)
    sending = asyncio.create_task(load.run())
    try:
        await meanwhile()
        load.stopping.set()
        await sending
    finally:
        sending.cancel()
        await transport.close()
    latencies_s = [request.latency_s for request in load.ended if request.error is None]
    p50_s, p99_s = np.percentile(latencies_s, [50, 99])
    return Part(
        label,
        requests=len(load.ended),
        lost=load.errors,
        resent=transport.resent,
        p50_s=float(p50_s),
        p99_s=float(p99_s),
        answers=Counter(versions.find_version(logits) for logits in answers),
    )


async def replace_servers(servers: Sequence[ProductionTriton], repository: Path) -> None:
    """Stop each server with SIGTERM and start it again with `repository`, one after the other.

    The next server is stopped when the client uses the restarted one again. gRPC looks for it every two seconds; on
    Kubernetes, `minReadySeconds` gives it ten.
    """
    for server in servers:
        await asyncio.to_thread(server.stop)
        server.repository = repository
        await asyncio.to_thread(server.start)
        deadline = time.monotonic() + RETURN_TIMEOUT_S
        warmed_up = await asyncio.to_thread(server.count_answers, MODEL)  # Triton counts the warm-up too
        while await asyncio.to_thread(server.count_answers, MODEL) == warmed_up:
            assert time.monotonic() < deadline, f"the client does not use {server.address} again"
            await asyncio.sleep(0.05)


async def measure(folder: Path) -> list[Part]:
    """Measure without disturbance, with a restart of both servers, and with both replaced by version 2."""
    versions = make_versions(folder)
    with run_two_servers(versions.old) as servers:
        return [
            await measure_under_load(servers, versions, "nothing happens", lambda: asyncio.sleep(UNDISTURBED_S)),
            await measure_under_load(
                servers, versions, "each restarted", lambda: replace_servers(servers, versions.old)
            ),
            await measure_under_load(
                servers, versions, "each replaced by version 2", lambda: replace_servers(servers, versions.new)
            ),
        ]


def main() -> None:
    """Measure, and print the table."""
    folder = Path(tempfile.mkdtemp(prefix="rolling-"))
    try:
        parts = asyncio.run(measure(folder))
    finally:
        shutil.rmtree(folder)
    table = Table()
    for column in ("event", "requests", "lost", "sent again", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "event" else "right")
    for part in parts:
        times_ms = (f"{seconds * 1000:.0f}" for seconds in (part.p50_s, part.p99_s))
        table.add_row(part.label, str(part.requests), str(part.lost.total()), str(part.resent), *times_ms)
    Console().print(table)


if __name__ == "__main__":
    main()
