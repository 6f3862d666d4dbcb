"""Replacing servers under load: two Tritons behind one client, each stopped with SIGTERM and started again in turn.

    python -m tests.benchmarks.rolling

The network is a small one, so that the times are those of the way there, and of a server that stops: the last line is
the same with version 2 of the model in place of version 1. Read the ratios, not the seconds.
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
CALM_S = 10.0
BACK_S = 60.0  # in which a server that was started again is asked again


@dataclass(frozen=True)
class Part:
    """A part of the load: how many requests, why any were lost, how many were sent again, and which version
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
    """Repositories of one model, `old` with its version 1 and `new` with version 2; a clip to ask about, and what each
    version answers to it."""

    old: Path
    new: Path
    clip: Array
    told: Mapping[str, Array]

    def version_of(self, logits: Array) -> str:
        """Which version answered so."""
        return next((name for name, known in self.told.items() if np.allclose(logits, known, atol=1e-3)), "neither")


def make_versions(folder: Path, num_frames: int = 24) -> Versions:
    """Two small networks of the same glosses."""
    clip = np.random.default_rng(0).integers(0, 256, (1, num_frames, 224, 224, 3), np.uint8)
    told = {}
    for version, name in (("1", "old"), ("2", "new")):
        checkpoint = save_checkpoint(folder / f"{name}.pt", seed=int(version))
        export_model(load_checkpoint(checkpoint), GLOSSES, PRESETS["wlasl"], folder / name, MODEL, version=int(version))
        with torch.inference_mode():
            told[version] = torch.jit.load(folder / name / MODEL / version / "model.pt")(torch.from_numpy(clip))[
                0
            ].numpy()
    return Versions(folder / "old", folder / "new", clip, told)


@contextmanager
def two_servers(repository: Path) -> Iterator[list[ProductionTriton]]:
    """Running, and ready."""
    with ExitStack() as running:
        yield [running.enter_context(ProductionTriton(repository)) for _ in range(2)]


async def logits_of(transport: GrpcTransport, clip: Array) -> Array:
    """What the model answers to the clip."""
    return (await transport.infer(MODEL, {"FRAMES__0": clip}, ["LOGITS__0"]))["LOGITS__0"]


async def under_load(
    servers: Sequence[ProductionTriton],
    versions: Versions,
    label: str,
    meanwhile: Callable[[], Awaitable[None]],
    in_flight: int = IN_FLIGHT,
) -> Part:
    """Ask through one client for as long as `meanwhile` takes."""
    address = ",".join(server.address for server in servers)
    transport = GrpcTransport(address, security=Security(api_key=API_KEY), in_flight=in_flight)
    answers: list[Array] = []

    async def send() -> None:
        answers.append(await logits_of(transport, versions.clip))

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
        answers=Counter(versions.version_of(logits) for logits in answers),
    )


async def replace(servers: Sequence[ProductionTriton], repository: Path) -> None:
    """Stop each server with SIGTERM and start it again on `repository`, the next one when the client asks it again.

    gRPC looks for a server that is back every two seconds; on Kubernetes, `minReadySeconds` leaves it ten.
    """
    for server in servers:
        await asyncio.to_thread(server.stop)
        server.repository = repository
        await asyncio.to_thread(server.start)
        deadline = time.monotonic() + BACK_S
        warmed_up = await asyncio.to_thread(server.count_answers, MODEL)  # Triton counts the warm-up, too
        while await asyncio.to_thread(server.count_answers, MODEL) == warmed_up:
            assert time.monotonic() < deadline, f"the client does not ask {server.address} again"
            await asyncio.sleep(0.05)


async def measure(folder: Path) -> list[Part]:
    """The calm, a restart of both, and both replaced by version 2."""
    versions = make_versions(folder)
    with two_servers(versions.old) as servers:
        return [
            await under_load(servers, versions, "nothing happens", lambda: asyncio.sleep(CALM_S)),
            await under_load(servers, versions, "each restarted", lambda: replace(servers, versions.old)),
            await under_load(servers, versions, "each by version 2", lambda: replace(servers, versions.new)),
        ]


def main() -> None:
    """Measure and print."""
    folder = Path(tempfile.mkdtemp(prefix="rolling-"))
    try:
        parts = asyncio.run(measure(folder))
    finally:
        shutil.rmtree(folder)
    table = Table()
    for column in ("meanwhile", "requests", "lost", "sent again", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "meanwhile" else "right")
    for part in parts:
        numbers = (
            part.requests,
            part.lost.total(),
            part.resent,
            f"{part.p50_s * 1000:.0f}",
            f"{part.p99_s * 1000:.0f}",
        )
        table.add_row(part.label, *map(str, numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
