"""`python -m tests.benchmarks.engines`: the formats of a model, compared on this machine's CPU.

The first row is what the earlier project did: the network as trained, in eager float32, clip after clip. Then come the
bare forwards of every format, the whole path through a real Triton with each, and LitServe with the same TorchScript
file. A product of large bfloat16 matrices shows what these cores can reach at most, and each row has its share of that.
Bare forwards take turns, so that noise affects all alike. Weights are random, as they do not affect speed. Stop other
programs first, and read the ratios.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from asl_triton.postprocessing.ranking import rank
from asl_triton.presets import PRESETS
from asl_triton.transport.shm import Sharing
from asl_triton.video.discovery import Clip
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import Checkpoint, load_checkpoint
from asl_triton_export.exporter import export_model, fastest_precision
from asl_triton_export.formats import get_format
from asl_triton_export.formats.torchscript import ServedI3D
from asl_triton_export.i3d import I3D, normalize
from asl_triton_export.quantization.calibration import read_windows
from asl_triton_export.triton_config import Format
from tests.benchmarks.__main__ import FLOP_PER_CLIP, NUM_FRAMES, measure_as_trained, measure_served, write_clip
from tests.networks import build_small_network

PRESET = PRESETS["wlasl"]
LABELS = tuple(f"gloss {n}" for n in range(2000))
MATRIX_SIDE = 2048
PRODUCTS = round(FLOP_PER_CLIP / (2 * MATRIX_SIDE**3))  # together, as many operations as a clip
LITSERVE = "litserve==0.2.19"
WAYS: dict[Sharing, str] = {"grpc": "gRPC", "shm": "shared memory"}


@dataclass(frozen=True)
class Row:
    """One way to do the work: seconds per clip (median), and the memory of the process that computes, in MB."""

    what: str
    seconds: float
    p95_s: float
    memory_mb: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines", description=__doc__)
    parser.add_argument("--clips", type=int, default=8, help="number of clips to render")
    parser.add_argument("--rounds", type=int, default=8, help="measurements of each bare forward")
    parser.add_argument("--checkpoint", type=Path, help="an I3D with 2000 classes instead of random weights")
    parser.add_argument(
        "--aot", action="store_true", help="also measure AOTInductor, which compiles for minutes with g++"
    )
    parser.add_argument("--output", type=Path, default=Path("build") / "engines.json", help="JSON file for the figures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    console = Console(width=115)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.clips, arguments.rounds, arguments.checkpoint, console)
        rows = bench.measure_rows(aot=arguments.aot)
    show(rows, console)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    console.print(f"written: {arguments.output}")


class Bench:
    """The clips, and one model folder for each format and precision."""

    def __init__(self, folder: Path, num_clips: int, rounds: int, checkpoint: Path | None, console: Console) -> None:
        self.folder, self.rounds, self.console = folder, rounds, console
        with console.status("Rendering clips"):
            self.clips = [write_clip(folder / "clips" / f"{n:03}.mp4", n) for n in range(num_clips)]
        if checkpoint is None:
            state = build_small_network(len(LABELS), width=1.0).state_dict()
            self.checkpoint = Checkpoint(folder / "random.pt", "0" * 64, state, len(LABELS), 3, 1.0)
        else:
            self.checkpoint = load_checkpoint(checkpoint)
        self.net = self.checkpoint.network()

    def measure_rows(self, *, aot: bool) -> list[Row]:
        """Measure all rows, in the order of the table."""
        half = "bf16" if fastest_precision("openvino") == "bf16" else "fp32"
        exports: list[tuple[Format, str]] = [("torchscript", "fp32"), ("torchscript", half), ("openvino", "fp32")]
        exports += [("openvino", half), ("openvino", "int8")]
        exports = list(dict.fromkeys(exports))
        with self.console.status("As trained, one clip after another"):
            first = measure_as_trained(self.net, self.clips)
        rows = [Row(first.what, first.seconds, first.p95_s or first.seconds)]
        for served_as, precision in exports:
            with self.console.status(f"Exporting {served_as} {precision}"):
                self.export(served_as, precision)
        with self.console.status("Bare forwards"):
            rows += self.measure_bare_forwards(exports, aot)
        show(rows, self.console)  # a preview: the rest takes just as long
        for served_as, precision in exports:
            if precision != "fp32":
                with self.console.status(f"Serving {served_as} {precision}"):
                    rows += self.measure_triton(served_as, precision)
        with self.console.status("Serving with LitServe"):
            rows.append(
                self.measure_litserve(self.get_repository("torchscript", half) / "i3d" / "1" / "model.pt", half)
            )
        return rows

    def get_repository(self, served_as: str, precision: str) -> Path:
        return self.folder / f"{served_as}-{precision}"

    def export(self, served_as: Format, precision: str) -> None:
        """Write a repository with one model, `i3d`."""
        calibrate = {"calibrate": self.folder / "clips"} if precision == "int8" else {}
        options = {"precision": precision, "served_as": served_as, **calibrate}
        export_model(self.checkpoint, LABELS, PRESET, self.get_repository(served_as, precision), "i3d", **options)

    def measure_bare_forwards(self, exports: list[tuple[Format, str]], aot: bool) -> list[Row]:
        """The forward alone, of one clip of 64 frames."""
        frames = next(read_windows(Clip(self.clips[0], "clip"), PRESET))[None]
        x = normalize(torch.from_numpy(frames), PRESET)
        ways: dict[str, Callable[[], object]] = {
            "product of bfloat16 matrices, as many operations": make_matrix_products(),
            "bare forward: as trained, eager float32": lambda: self.net(x),
        }
        for served_as, precision in exports:
            exported = get_format(served_as).open(self.get_repository(served_as, precision) / "i3d" / "1", precision)
            ways[f"bare forward: {served_as} {precision}"] = lambda exported=exported: exported(frames)
        if aot:
            package = compile_with_aot_inductor(self.net, self.folder)
            ways["bare forward: AOTInductor bf16"] = lambda: package(torch.from_numpy(frames))
        times: dict[str, list[float]] = {what: [] for what in ways}
        with torch.inference_mode():
            for turn in range(self.rounds + 2):
                for what, forward in ways.items():
                    began = time.perf_counter()
                    forward()
                    if turn > 1:  # the first two turns warm up
                        times[what].append(time.perf_counter() - began)
        return [build_row(what, seconds) for what, seconds in times.items()]

    def measure_triton(self, served_as: str, precision: str) -> list[Row]:
        """The whole path by gRPC and by shared memory, one clip after another: decode, crop, send, infer, rank."""
        rows = []
        with LocalTriton(self.get_repository(served_as, precision), shared_memory=True) as triton:
            for sharing, way in WAYS.items():
                what = f"Triton, {way}: {served_as} {precision}"
                measured = asyncio.run(measure_served(triton.address, self.clips, 1, what, sharing))
                stubs = [p for p in psutil.Process(triton.pid).children(recursive=True) if "stub" in p.name()]
                memory_mb = sum(stub.memory_info().rss for stub in stubs) / 2**20
                rows.append(Row(what, measured.seconds, measured.p95_s or measured.seconds, memory_mb))
        return rows

    def measure_litserve(self, model: Path, precision: str) -> Row:
        """The same path with LitServe instead of Triton, and an HTTP form instead of gRPC."""
        times = []
        with run_litserve(model, self.folder / "litserve") as (address, process), httpx.Client(timeout=600) as client:
            for turn in range(3):  # the first turn warms up
                for path in self.clips:
                    began = time.perf_counter()
                    (frames,) = read_windows(Clip(path, path.name), PRESET)
                    answer = client.post(f"{address}/predict", files={"frames": frames.tobytes()}).raise_for_status()
                    rank(np.array(answer.json()["logits"], np.float32), LABELS, PRESET, np.arange(len(LABELS)), 10)
                    if turn:
                        times.append(time.perf_counter() - began)
            workers = [process, *process.children(recursive=True)]
            memory_mb = max(worker.memory_info().rss for worker in workers) / 2**20
        return Row(f"LitServe, HTTP: torchscript {precision}", *compute_quantiles(times), memory_mb)


def make_matrix_products() -> Callable[[], object]:
    """Make products of bfloat16 matrices with as many operations as a clip, to see what oneDNN reaches on these
    cores."""
    one, other = torch.randn(MATRIX_SIDE, MATRIX_SIDE).bfloat16(), torch.randn(MATRIX_SIDE, MATRIX_SIDE).bfloat16()
    return lambda: [torch.nn.functional.linear(one, other) for _ in range(PRODUCTS)]


def compile_with_aot_inductor(net: I3D, folder: Path) -> Callable[..., object]:
    """Compile the served network ahead of time, for clips of 24, 32, 40 ... frames.

    This is only measured. We do not offer the format, because a package cannot accept every length that the contract
    allows (none accepts clips both below and above 17 frames), and works with one processor and one PyTorch version.
    """
    frames = torch.zeros(1, NUM_FRAMES, 224, 224, 3, dtype=torch.uint8)
    lengths = {"frames": {1: 8 * torch.export.Dim("eighth", min=3, max=37)}}
    with torch.no_grad():
        served = ServedI3D(net, PRESET, torch.bfloat16).eval()
        exported = torch.export.export(served, (frames,), dynamic_shapes=lengths, strict=False)
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(folder / "aot.pt2"), inductor_configs={"freezing": True}
        )
    return torch._inductor.aoti_load_package(package)


@contextmanager
def run_litserve(model: Path, packages: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run LitServe with a TorchScript file. It is installed in its own folder, because it brings its own web server."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), LITSERVE]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("litserve_server.py")
    environment = os.environ | {"PYTHONPATH": str(packages)}
    process = psutil.Popen(
        [sys.executable, str(script), str(model), str(port)], env=environment, stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(address, process)
        yield address, process
    finally:
        for each in [*process.children(recursive=True), process]:
            each.terminate()
        psutil.wait_procs([process], timeout=10)
        shutil.rmtree(packages, ignore_errors=True)


def wait_until_healthy(address: str, process: psutil.Popen) -> None:
    """Wait until LitServe's worker has loaded the network."""
    for _ in range(300):
        if process.poll() is not None:
            sys.exit(f"LitServe ended with {process.returncode}")
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    sys.exit("LitServe was not ready after a minute")


def build_row(what: str, times: list[float]) -> Row:
    """Build a row from separate measurements."""
    return Row(what, *compute_quantiles(times))


def compute_quantiles(times: list[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    return statistics.median(times), float(np.quantile(times, 0.95))


def show(rows: list[Row], console: Console) -> None:
    """Print the table, and the gains over TorchScript."""
    seconds = {r.what: r.seconds for r in rows}
    rate = seconds["product of bfloat16 matrices, as many operations"]
    table = Table(title=f"{NUM_FRAMES}-frame clips, {torch.get_num_threads()} threads", title_justify="left")
    for column in ("what", "s per clip", "p95 s", "times as fast", "of the matrix rate", "MB"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for r in rows:
        memory = "" if r.memory_mb is None else f"{r.memory_mb:.0f}"
        share = f"{rate / r.seconds:.0%}"
        table.add_row(r.what, f"{r.seconds:.3f}", f"{r.p95_s:.3f}", f"{rows[0].seconds / r.seconds:.1f}", share, memory)
    console.print(table)
    console.print(f"the matrix rate: {FLOP_PER_CLIP / rate / 1e9:,.0f} GFLOP/s in bfloat16")
    for what, time_s in seconds.items():
        if what.startswith(("bare forward: openvino", "bare forward: AOTInductor")):
            precision = "fp32" if what.endswith("fp32") else "bf16"
            if baseline := seconds.get(f"bare forward: torchscript {precision}"):
                name = what.removeprefix("bare forward: ")
                console.print(f"{name}: {1 - time_s / baseline:.0%} less time than TorchScript in {precision}")


if __name__ == "__main__":
    main()
