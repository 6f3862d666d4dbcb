"""What it costs to send cropped frames to the server, compared with the video file.

    python -m tests.benchmarks.sending

Both ways take turns with the same clips and one server on this machine. First a proxy counts the bytes on the wire.
Then latency and clips per second are measured without the proxy, for 1, 4 and 16 clips at once. Client and server share
the processors without a network in between, so the seconds show what each way costs to compute, and the bytes what a
network would have to carry. Weights are random and full-width unless `--demo` is given; they do not affect speed.
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
from tests.networks import build_small_network
from tests.paths import DEMO_BUNDLE

WAYS: tuple[Send, ...] = ("frames", "video")
AT_ONCE = (1, 4, 16)
CHUNK = 2**16


@dataclass(frozen=True)
class Row:
    """One way with `at_once` clips at once. Latencies are from a clip's path to its glosses."""

    send: Send
    at_once: int
    p50_s: float
    p95_s: float
    clips_per_second: float


@dataclass
class CountingProxy:
    """A proxy in front of a server. Counts the bytes of both directions."""

    server: str
    up: int = 0
    down: int = 0
    address: str = ""
    _pumps: set["asyncio.Task[None]"] = field(default_factory=set)

    @asynccontextmanager
    async def run(self) -> AsyncIterator["CountingProxy"]:
        """Forward bytes for the length of the block."""
        proxy = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            proxy.close()
            for pump in self._pumps:
                pump.cancel()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.server.rsplit(":", 1)
        from_server, to_server = await asyncio.open_connection(host, int(port))
        self._pumps |= {
            asyncio.create_task(self._pump(reader, to_server, "up")),
            asyncio.create_task(self._pump(from_server, writer, "down")),
        }

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        while data := await reader.read(CHUNK):
            setattr(self, direction, getattr(self, direction) + len(data))
            writer.write(data)
            await writer.drain()
        writer.close()


def main() -> None:
    """Serve, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=48, help="clips per row of the table")
    parser.add_argument("--videos", type=Path, help="folder of clips; by default, clips of 64 frames are rendered")
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
            sizes = {send: asyncio.run(measure_wire_bytes(triton.address, clips, send)) for send in WAYS}
            rows = asyncio.run(measure(triton.address, clips, arguments.requests))
        show(console, clips, sizes, rows, f"{'demo' if arguments.demo else 'full-width'} network, {precision}")


def export(folder: Path, demo: bool, precision: str) -> None:
    """Export one model."""
    if demo:
        checkpoint = load_checkpoint(DEMO_BUNDLE / "weights.safetensors")
        labels = tuple((DEMO_BUNDLE / "labels.txt").read_text().splitlines())
    else:
        net = build_small_network(2000, width=1.0)
        checkpoint = Checkpoint(folder / "random.pt", "0" * 64, net.state_dict(), 2000, 3, 1.0)
        labels = tuple(f"gloss {n}" for n in range(2000))
    export_model(checkpoint, labels, PRESETS["wlasl"], folder / "models", "i3d", precision=precision)


def make_recognizer(address: str, send: Send, in_flight: int = 1) -> AsyncRecognizer:
    """Make a recognizer that sends gRPC messages, as to a server on another machine."""
    transport = make_transport(address, in_flight=in_flight, shared_memory="grpc")
    return AsyncRecognizer(in_flight=in_flight, send=send, transport=transport)


async def measure_wire_bytes(address: str, clips: Sequence[Path], send: Send) -> tuple[float, float]:
    """Measure bytes per clip, to the server and from it, including gRPC's framing."""
    async with CountingProxy(address).run() as proxy, make_recognizer(proxy.address, send) as recognizer:
        await recognizer.recognize(clips[0])  # reads the contract
        before = proxy.up, proxy.down
        for clip in clips:
            await recognizer.recognize(clip)
        return (proxy.up - before[0]) / len(clips), (proxy.down - before[1]) / len(clips)


async def measure(address: str, clips: Sequence[Path], requests: int) -> list[Row]:
    """Measure all rows. For each number of clips at once, the ways take turns, with half of their requests per turn."""
    rows = []
    for at_once in AT_ONCE:
        latencies: dict[Send, list[float]] = {send: [] for send in WAYS}
        seconds: dict[Send, float] = dict.fromkeys(WAYS, 0.0)
        for send in (*WAYS, *reversed(WAYS)):  # a machine that slows down affects both alike
            turn_latencies, turn_s = await recognize_clips(address, clips, send, at_once, max(requests // 2, at_once))
            latencies[send] += turn_latencies
            seconds[send] += turn_s
        for send in WAYS:
            p50_s, p95_s = np.quantile(latencies[send], [0.5, 0.95])
            rows.append(Row(send, at_once, p50_s, p95_s, len(latencies[send]) / seconds[send]))
    return rows


async def recognize_clips(
    address: str, clips: Sequence[Path], send: Send, at_once: int, requests: int
) -> tuple[list[float], float]:
    """Recognize this number of clips. Returns their latencies, and the seconds for all of them."""
    remaining = iter([clips[n % len(clips)] for n in range(requests)])
    latencies: list[float] = []

    async def work(recognizer: AsyncRecognizer) -> None:
        for clip in remaining:
            began = time.perf_counter()
            await recognizer.recognize(clip)
            latencies.append(time.perf_counter() - began)

    async with make_recognizer(address, send, at_once) as recognizer:
        await recognizer.recognize(clips[0])
        began = time.perf_counter()
        await asyncio.gather(*(work(recognizer) for _ in range(at_once)))
        return latencies, time.perf_counter() - began


def show(
    console: Console, clips: Sequence[Path], sizes: dict[Send, tuple[float, float]], rows: list[Row], what: str
) -> None:
    """Print the bytes and the table."""
    mean_kb = np.mean([clip.stat().st_size for clip in clips]) / 1e3
    console.print(f"{what}; {len(clips)} clips of {mean_kb:.0f} kB on average", highlight=False)
    for send, (up, down) in sizes.items():
        console.print(
            f"{send}: {up / 1e3:,.0f} kB to the server and {down / 1e3:.1f} kB back per clip", highlight=False
        )
    table = Table(title="seconds from a clip's path to its glosses", title_justify="left")
    for column in ("clips at once", "send", "p50 s", "p95 s", "clips/s"):
        table.add_column(column, justify="left" if column == "send" else "right")
    for row in rows:
        table.add_row(str(row.at_once), row.send, f"{row.p50_s:.2f}", f"{row.p95_s:.2f}", f"{row.clips_per_second:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
