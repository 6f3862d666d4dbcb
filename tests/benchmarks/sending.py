"""What goes to the server, and what that costs: cropped frames beside the video's file, in one run.

    python -m tests.benchmarks.sending

The same clips and one server on this machine, the two ways in turns: bytes on the wire, counted by a proxy that only
this count goes through; then latency and clips a second for 1, 4 and 16 clips at once. Client and server share the
processors and no network is between them: the seconds say what each way costs to compute, the bytes what a line would
have to carry beside it. Weights are random and full-width, unless `--demo`: speed does not depend on them.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.upload import Send
from asl_triton.transport.factory import make_transport
from asl_triton.video.discovery import find_clips
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import Checkpoint, load_checkpoint
from asl_triton_export.exporter import export_model, fastest_precision
from tests.benchmarks.__main__ import write_clip
from tests.networks import small_network
from tests.paths import DEMO_BUNDLE

WAYS: tuple[Send, ...] = ("frames", "video")
AT_ONCE = (1, 4, 16)
CHUNK = 2**16


@dataclass(frozen=True)
class Row:
    """One way with so many clips at once; latencies in seconds, of one clip from its path to its glosses."""

    send: Send
    at_once: int
    p50_s: float
    p95_s: float
    clips_a_second: float


@dataclass
class Wire:
    """A proxy before a server that counts the bytes of both directions."""

    server: str
    up: int = 0
    down: int = 0
    address: str = ""
    _pumps: set["asyncio.Task[None]"] = field(default_factory=set)

    @asynccontextmanager
    async def counting(self) -> AsyncIterator["Wire"]:
        """Carry bytes for the length of the block."""
        proxy = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            proxy.close()
            for pump in self._pumps:
                pump.cancel()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.server.rsplit(":", 1)
        there, back = await asyncio.open_connection(host, int(port))
        self._pumps |= {
            asyncio.create_task(self._pump(reader, back, "up")),
            asyncio.create_task(self._pump(there, writer, "down")),
        }

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        while data := await reader.read(CHUNK):
            setattr(self, way, getattr(self, way) + len(data))
            writer.write(data)
            await writer.drain()
        writer.close()


def main() -> None:
    """Serve, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=48, help="clips asked about, for each row")
    parser.add_argument("--videos", type=Path, help="a folder of clips; rendered ones of 64 frames if not given")
    parser.add_argument("--demo", action="store_true", help="the demo checkpoint, a small network")
    arguments = parser.parse_args()
    console, precision = Console(width=110), fastest_precision()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.videos:
            clips = [clip.path for clip in find_clips(arguments.videos)]
        else:
            clips = [write_clip(folder / "clips" / f"{n:02}.mp4", n) for n in range(8)]
        export(folder, arguments.demo, precision)
        with LocalTriton(folder / "models", recognize_sign=True) as triton:
            sizes = {send: asyncio.run(wire_bytes(triton.address, clips, send)) for send in WAYS}
            rows = asyncio.run(measure(triton.address, clips, arguments.requests))
        show(console, clips, sizes, rows, f"{'demo' if arguments.demo else 'full-width'} network, {precision}")


def export(folder: Path, demo: bool, precision: str) -> None:
    """One model."""
    if demo:
        checkpoint = load_checkpoint(DEMO_BUNDLE / "weights.safetensors")
        labels = tuple((DEMO_BUNDLE / "labels.txt").read_text().splitlines())
    else:
        net = small_network(2000, width=1.0)
        checkpoint = Checkpoint(folder / "random.pt", "0" * 64, net.state_dict(), 2000, 3, 1.0)
        labels = tuple(f"gloss {n}" for n in range(2000))
    export_model(checkpoint, labels, PRESETS["wlasl"], folder / "models", "i3d", precision=precision)


def recognizer_of(address: str, send: Send, in_flight: int = 1) -> AsyncRecognizer:
    """One that sends messages, as to a server elsewhere."""
    transport = make_transport(address, in_flight=in_flight, shared_memory="grpc")
    return AsyncRecognizer(in_flight=in_flight, send=send, transport=transport)


async def wire_bytes(address: str, clips: Sequence[Path], send: Send) -> tuple[float, float]:
    """Bytes a clip, to the server and from it, with gRPC's and TCP's payload framing."""
    async with Wire(address).counting() as wire, recognizer_of(wire.address, send) as recognizer:
        await recognizer.recognize(clips[0])  # the contract is read
        before = wire.up, wire.down
        for clip in clips:
            await recognizer.recognize(clip)
        return (wire.up - before[0]) / len(clips), (wire.down - before[1]) / len(clips)


async def measure(address: str, clips: Sequence[Path], requests: int) -> list[Row]:
    """All rows: for each number of clips at once both ways in turns, each half of its requests at a time."""
    rows = []
    for at_once in AT_ONCE:
        latencies: dict[Send, list[float]] = {send: [] for send in WAYS}
        seconds: dict[Send, float] = dict.fromkeys(WAYS, 0.0)
        for send in (*WAYS, *reversed(WAYS)):  # a machine that slows down meets both alike
            took, seconds_taken = await ask(address, clips, send, at_once, max(requests // 2, at_once))
            latencies[send] += took
            seconds[send] += seconds_taken
        for send in WAYS:
            p50_s, p95_s = np.quantile(latencies[send], [0.5, 0.95])
            rows.append(Row(send, at_once, p50_s, p95_s, len(latencies[send]) / seconds[send]))
    return rows


async def ask(
    address: str, clips: Sequence[Path], send: Send, at_once: int, requests: int
) -> tuple[list[float], float]:
    """Latencies of so many clips, and the seconds for all."""
    waiting = iter([clips[n % len(clips)] for n in range(requests)])
    latencies: list[float] = []

    async def work(recognizer: AsyncRecognizer) -> None:
        for clip in waiting:
            began = time.perf_counter()
            await recognizer.recognize(clip)
            latencies.append(time.perf_counter() - began)

    async with recognizer_of(address, send, at_once) as recognizer:
        await recognizer.recognize(clips[0])
        began = time.perf_counter()
        await asyncio.gather(*(work(recognizer) for _ in range(at_once)))
        return latencies, time.perf_counter() - began


def show(
    console: Console, clips: Sequence[Path], sizes: dict[Send, tuple[float, float]], rows: list[Row], what: str
) -> None:
    """The table, and the bytes."""
    files = np.mean([clip.stat().st_size for clip in clips]) / 1e3
    console.print(f"{what}; {len(clips)} clips of {files:.0f} kB in the mean", highlight=False)
    for send, (up, down) in sizes.items():
        console.print(f"{send}: {up / 1e3:,.0f} kB to the server and {down / 1e3:.1f} kB back, a clip", highlight=False)
    table = Table(title="s from a clip's path to its glosses", title_justify="left")
    for column in ("clips at once", "send", "p50 s", "p95 s", "clips a second"):
        table.add_column(column, justify="left" if column == "send" else "right")
    for row in rows:
        table.add_row(str(row.at_once), row.send, f"{row.p50_s:.2f}", f"{row.p95_s:.2f}", f"{row.clips_a_second:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
