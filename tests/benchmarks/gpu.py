"""`make bench-gpu`: I3D on a GPU, on a machine that has only PyTorch and CUDA. docs/gpu.md explains the rows.

    python -m tests.benchmarks.gpu --output DIR

Needs Python 3.10 or newer, PyTorch, NumPy and this checkout, but neither Triton nor a network connection. Rows run in a
separate process, the most valuable ones first. An exception becomes the result of its row, and a row that crashes or
hangs is stopped. `gpu.json` and `gpu.md` are written after each row, so an interrupted run loses nothing. With
`--device cpu`, few frames and a small `--width`, the same rows run anywhere, but their figures mean nothing.
"""
# ruff: noqa: E402 - if the client is not installed, its modules are made importable first

import argparse
import gc
import importlib
import io
import multiprocessing
import platform
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]

try:
    import asl_triton
except ImportError:
    # The client is not installed, or OpenCV, PyAV or gRPC is missing. The network needs none of them, so import its
    # modules from their folder, without running the client's __init__.py.
    asl_triton = types.ModuleType("asl_triton")
    asl_triton.__path__ = [str(ROOT / "client" / "asl_triton")]
    sys.modules["asl_triton"] = asl_triton
    sys.path.append(str(ROOT / "export"))

from asl_triton.presets import PRESETS
from asl_triton_export.formats.torchscript import ServedI3D
from asl_triton_export.i3d import I3D, normalize, pool_steps
from tests.benchmarks.gpu_report import AT_ONCE, Figure, Report, Row
from tests.networks import build_small_network

PRESET = PRESETS["wlasl"]
NUM_CLASSES = 2000
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MEASURE_S = 0.3  # per batch size, but at least MIN_FORWARDS forwards
MIN_FORWARDS = 3
MAX_FORWARDS = 200
ROW_LIMIT_S = 150.0  # rows that take longer are stopped
BUDGET_S = 420.0
MATRIX_SIDE = {"cuda": 8192, "cpu": 512}
DECODERS = (1, 4, 8)
NEW_LENGTHS = (0.4, 0.55, 0.7, 0.85, 1.2, 1.45)  # times the usual length
CLIP = ROOT / "ui" / "asl_triton_ui" / "samples" / "book.mp4"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    device: str
    num_frames: int
    batches: tuple[int, ...]
    width: float  # of the network; the reference checkpoint has 1.0


class Contiguous(ServedI3D):
    """The exported network with its memory in PyTorch's default format, not channels-last."""

    pad_channels_last = types.FunctionType(  # TorchScript has no super() and finds methods by their name
        ServedI3D.pad_clip.__code__, ServedI3D.pad_clip.__globals__, "pad_channels_last"
    )

    def pad_clip(self, frames: Tensor) -> Tensor:
        return self.pad_channels_last(frames).contiguous()


class Trained(nn.Module):
    """The network as trained, from normalized clips (N, 3, T, 224, 224) to logits (N, C)."""

    def __init__(self, net: I3D) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        output = self.net(x)
        return pool_steps(self.net, output.step_logits, output.features, PRESET)


Forward = Callable[[Tensor], Tensor]  # clips to logits (N, C)


class Bench:
    """The network, the clips and their float32 logits, on the device, and a method for each kind of row."""

    def __init__(self, options: Options) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.is_cuda = self.device.type == "cuda"
        self.reference = find_reference() if options.width == 1.0 else None
        self.net = build_network(options.width, self.reference).to(self.device)
        self.flops = count_flops(options.num_frames, options.width)
        self.frames = self.render(max(options.batches), options.num_frames)
        set_tf32(False)
        trained = Trained(self.net)
        self.logits = torch.cat([trained(self.normalize(clip[None])) for clip in self.frames]).cpu()

    def render(self, count: int, num_frames: int) -> Tensor:
        """Render different clips of moving noise, the same on every machine: uint8 RGB (N, T, 224, 224, 3)."""
        coarse = torch.rand(count, 3, num_frames // 4 + 2, 14, 14, generator=torch.Generator().manual_seed(num_frames))
        clips = [F.interpolate(clip[None].to(self.device), (num_frames, 224, 224), mode="trilinear") for clip in coarse]
        return (torch.cat([clip.mul_(255).round_().byte() for clip in clips])).permute(0, 2, 3, 4, 1).contiguous()

    def normalize(self, frames: Tensor) -> Tensor:
        """Convert clips to the trained network's input: float32 (N, 3, T, 224, 224) in the default memory format."""
        return normalize(frames, PRESET).contiguous()

    def describe(self) -> dict[str, str]:
        """Describe the machine, the software and the weights."""
        facts = {
            "device": "CPU",
            "Python": platform.python_version(),
            "PyTorch": torch.__version__,
            "NumPy": np.__version__,
            "weights": "random, of the reference checkpoint's shape: no folder `shared` was found"
            if self.reference is None
            else "the reference checkpoint",
            "frames": str(self.options.num_frames),
            "GFLOP per clip": f"{self.flops / 1e9:.1f}",
            "spread of the float32 logits": f"{self.logits.max() - self.logits.min():.3f}",
            "commit": run_program("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        }
        if self.options.width != 1.0:
            facts["weights"] = f"random, {self.options.width} times the width: speed figures mean nothing"
        if self.is_cuda:
            device = torch.cuda.get_device_properties(self.device)
            facts |= {
                "device": device.name,
                "memory": f"{device.total_memory / 2**30:.0f} GiB",
                "multiprocessors": str(device.multi_processor_count),
                "compute capability": f"{device.major}.{device.minor}",
                "CUDA": str(torch.version.cuda),
                "cuDNN": str(torch.backends.cudnn.version()),
                "driver, power limit, clock": run_program(
                    "nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"
                ),
            }
        return facts

    # Timing

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def time(self, forward: Forward, clips: Tensor) -> tuple[float, Tensor]:
        """Run one forward. Returns its seconds, including the launch of its kernels, and its answer."""
        self.synchronize()
        began = time.perf_counter()
        answer = forward(clips)
        self.synchronize()
        return time.perf_counter() - began, answer

    def repeat(self, forward: Forward, clips: Tensor) -> list[float]:
        """Run forwards one after another. Returns the seconds of each."""
        times: list[float] = []
        while len(times) < MIN_FORWARDS or (sum(times) < MEASURE_S and len(times) < MAX_FORWARDS):
            times.append(self.time(forward, clips)[0])
        return times

    def measure(
        self,
        forward: Forward,
        precision: str,
        *,
        batches: tuple[int, ...] = (),
        normalized: bool = False,
        note: str = "",
    ) -> Row:
        """Measure one forward at every batch size, up to the first that does not fit into memory."""
        row = Row("ok", precision=precision, note=note, max_difference=0.0)
        for batch in batches or self.options.batches:
            clips = self.frames[:batch]
            clips = self.normalize(clips).to(DTYPES[precision]) if normalized else clips
            try:
                row = self.add_figure(row, forward, clips)
            except torch.OutOfMemoryError:
                return replace(row, note=f"{row.note} Out of memory at batch {batch}.".strip())
        return row

    def add_figure(self, row: Row, forward: Forward, clips: Tensor) -> Row:
        """Add a batch size to the row: its time, and its difference from float32."""
        batch, peak_mb = len(clips), None
        if self.is_cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        first_s, answer = self.time(forward, clips)
        logits = answer.float().cpu()
        self.time(forward, clips)
        times = self.repeat(forward, clips)
        if self.is_cuda:
            peak_mb = (torch.cuda.max_memory_allocated() - before) / 2**20
        seconds = statistics.median(times)
        figure = Figure(
            batch,
            first_s,
            seconds,
            float(np.quantile(times, 0.95)),
            clips_per_s=batch / seconds,
            tflops=batch * self.flops / seconds / 1e12,
            peak_mb=peak_mb,
        )
        expected = self.logits[:batch]
        difference, note = row.max_difference, row.note
        if not logits.isfinite().all():
            difference, note = None, f"{note} Some logits at batch {batch} are not finite.".strip()
        elif difference is not None:
            difference = max(difference, float((logits - expected).abs().max()))
        return replace(
            row,
            note=note,
            figures=(*row.figures, figure),
            max_difference=difference,
            same_top1=int((logits.argmax(1) == expected.argmax(1)).sum()),
            compared=batch,
        )

    # Rows

    def measure_matrix_rate(self) -> Row:
        """TFLOP/s of a product of large random matrices in each precision. Other rows have their share of it."""
        side, values = MATRIX_SIDE[self.device.type], {}
        for precision, dtype in DTYPES.items():
            set_tf32(precision == "tf32")
            one, other = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            self.time(other.matmul, one)
            values[precision] = 2 * side**3 / statistics.median(self.repeat(other.matmul, one)) / 1e12
        return Row("ok", values=values, note=f"TFLOP/s of products of {side} x {side} matrices.")

    def run_trained(self, precision: str) -> Row:
        """The network as trained, in eager mode, with or without TF32."""
        set_tf32(precision == "tf32")
        return self.measure(Trained(self.net), precision, normalized=True)

    def build_exported(self, precision: str, layout: type[ServedI3D] = ServedI3D) -> nn.Module:
        """Build the TorchScript network as the export does, save it, and load it."""
        set_tf32(precision == "tf32")
        served = layout(self.net, PRESET, DTYPES[precision]).eval()
        if layout is Contiguous:
            served.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(served), file)
        file.seek(0)
        return torch.jit.load(file, map_location=self.device)  # type: ignore[no-any-return]

    def run_exported(self, precision: str, layout: type[ServedI3D] = ServedI3D) -> Row:
        exported = self.build_exported(precision, layout)
        return self.measure(lambda frames: exported(frames)[0], precision)

    def compare_with_reference(self) -> Row:
        """Compare the exported network with the answers of the original one, at several lengths, step by step."""
        if self.reference is None:
            return Row("skipped", note="The weights are random, so there are no answers of the original network.")
        with np.load(self.reference / "expected.npz") as arrays:
            expected = {key: arrays[key] for key in arrays if key.startswith("noise") and key.endswith("/wlasl")}
        make_frames = runpy.run_path(str(self.reference / "make_checkpoint.py"))["test_frames"]
        values = {}
        for precision in DTYPES:
            exported, difference, same, steps = self.build_exported(precision), 0.0, 0, 0
            for key, answer in expected.items():
                length = int(key.removeprefix("noise").removesuffix("/wlasl"))
                frames = torch.from_numpy(make_frames(length, seed=length))[None].to(self.device)
                found = exported(frames)[1][0].cpu().numpy()
                difference = max(difference, float(np.abs(found - answer).max()))
                same += int((found.argmax(1) == answer.argmax(1)).sum())
                steps += len(answer)
            values[f"{precision}: max difference"] = difference
            values[f"{precision}: same top-1 of {steps} steps"] = same
        return Row("ok", values=values)

    def run_new_lengths(self, precision: str) -> Row:
        """One clip each of lengths not seen before: milliseconds of the first, the second and later requests."""
        usual, values = self.options.num_frames, {}
        lengths = dict.fromkeys(max(PRESET.min_frames, round(usual * factor)) for factor in NEW_LENGTHS)
        for optimized in (False, True):
            exported = self.build_exported(precision)
            with torch.jit.optimized_execution(optimized):
                self.repeat(lambda frames, exported=exported: exported(frames)[0], self.frames[:1])
                times = []
                for length in lengths:
                    frames = self.render(1, length)
                    times.append([self.time(exported, frames)[0] * 1000 for _ in range(5)])
            first, second, *later = zip(*times, strict=True)
            what = f"optimized execution {'on' if optimized else 'off'}"
            values |= {
                f"{what}: first": statistics.median(first),
                f"{what}: slowest first": max(first),
                f"{what}: second": statistics.median(second),
                f"{what}: later": statistics.median(min(row) for row in zip(*later, strict=True)),
            }
        return Row(
            "ok", precision=precision, values=values, note=f"Milliseconds; {', '.join(map(str, lengths))} frames."
        )

    def run_instances(self, precision: str) -> Row:
        """Clips per second of several threads that infer at once, each in its own stream, like Triton's instances."""
        exported, values = self.build_exported(precision), {}
        for batch in self.choose_few_batches():
            for count in AT_ONCE:
                self.run_at_once(count, exported, self.frames[:batch], 0.0)
                rate = self.run_at_once(count, exported, self.frames[:batch], MEASURE_S)
                values[f"batch {batch}, {count} at once"] = rate
        return Row("ok", precision=precision, values=values, note="Clips per second.")

    def run_at_once(self, count: int, exported: nn.Module, frames: Tensor, seconds: float) -> float:
        """Clips per second of several threads. Each runs at least one forward."""
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            forwards = list(pool.map(self.run_until, [began + seconds] * count, [exported] * count, [frames] * count))
            return sum(forwards) * len(frames) / (time.perf_counter() - began)

    def run_until(self, until: float, exported: nn.Module, frames: Tensor) -> int:
        """Run forwards in this thread's own stream until a time. Returns how many were completed."""
        stream, forwards = torch.cuda.Stream() if self.is_cuda else None, 0
        with use_inference_settings(), torch.cuda.stream(stream) if stream else nullcontext():
            while not forwards or time.perf_counter() < until:
                exported(frames)
                if stream:
                    stream.synchronize()
                forwards += 1
        return forwards

    def run_requests(self, precision: str) -> Row:
        """Milliseconds of a forward that copies frames from the host's memory and logits back to it."""
        if not self.is_cuda:
            return skip_without_cuda()
        exported, values = self.build_exported(precision), {}
        for batch in self.choose_few_batches():
            pageable = self.frames[:batch].cpu()
            for what, frames in {
                "on the GPU": self.frames[:batch],
                "pinned": pageable.pin_memory(),
                "pageable": pageable,
            }.items():
                times = self.repeat(lambda x: exported(x.to(self.device, non_blocking=True))[0].cpu(), frames)
                values[f"batch {batch}, frames {what}"] = statistics.median(times) * 1000
        return Row("ok", precision=precision, values=values, note="Milliseconds.")

    def run_cuda_graph(self, precision: str) -> Row:
        """The exported network captured as a CUDA graph for each batch size: what launching its kernels costs."""
        if not self.is_cuda:
            return skip_without_cuda()
        exported = self.build_exported(precision)
        rows = []
        for batch in self.options.batches:
            frames = self.frames[:batch].clone()
            for _ in range(3):
                exported(frames)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = exported(frames)[0]

            def replay(clips: Tensor, frames: Tensor = frames, graph: Any = graph, logits: Tensor = logits) -> Tensor:
                frames.copy_(clips)
                graph.replay()
                return logits

            row = self.measure(replay, precision, batches=(batch,))
            # A graph has its own memory pool, allocated when it was captured.
            rows.append(replace(row, figures=tuple(replace(figure, peak_mb=None) for figure in row.figures)))
        return join_rows(rows)

    def run_cudnn_benchmark(self, precision: str) -> Row:
        """The exported network with cuDNN's fastest algorithms, found by measuring. Triton's backend cannot do this."""
        torch.backends.cudnn.benchmark = True
        try:
            return self.run_exported(precision)
        finally:
            torch.backends.cudnn.benchmark = False

    def profile(self, precision: str) -> Row:
        """The kernels that one forward spends its time in, in percent of the device's time."""
        exported, batch = self.build_exported(precision), self.choose_few_batches()[-1]
        exported(self.frames[:batch])
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if self.is_cuda else []
        with torch.profiler.profile(activities=activities) as profiler:
            exported(self.frames[:batch])
            self.synchronize()
        kind = torch.autograd.DeviceType.CUDA if self.is_cuda else torch.autograd.DeviceType.CPU
        spent: dict[str, float] = {}
        for event in profiler.key_averages():
            if event.device_type == kind:
                time_us = event.self_device_time_total if self.is_cuda else event.self_cpu_time_total
                spent[event.key[:100]] = spent.get(event.key[:100], 0.0) + time_us
        total = sum(spent.values())
        top = sorted(spent, key=lambda key: -spent[key])[:15]
        values = {key: 100 * spent[key] / total for key in top}
        return Row("ok", precision=precision, values=values, note=f"Percent of the time of a forward of batch {batch}.")

    def decode_by_torchcodec(self) -> Row:
        """Clips per second of torchcodec, with several decoders at once."""
        if find_spec("torchcodec") is None:
            return Row("not installed")
        decoders = importlib.import_module("torchcodec.decoders")

        def decode() -> Tensor:
            decoder = decoders.VideoDecoder(str(CLIP), device=str(self.device), num_ffmpeg_threads=1)
            return decoder.get_frames_in_range(0, len(decoder)).data  # type: ignore[no-any-return]

        decoder = decoders.VideoDecoder(str(CLIP), device=str(self.device))
        decoder[0]
        return self.measure_decoding(decode, note=str(getattr(decoder, "cpu_fallback", "")))

    def decode_by_pynvvideocodec(self) -> Row:
        """Clips per second of PyNvVideoCodec, with several decoders at once."""
        if find_spec("PyNvVideoCodec") is None:
            return Row("not installed")
        if not self.is_cuda:
            return skip_without_cuda()
        nvc = importlib.import_module("PyNvVideoCodec")

        def decode() -> Tensor:
            decoder = nvc.SimpleDecoder(str(CLIP), gpu_id=0, output_color_type=nvc.OutputColorType.RGB)
            return torch.stack([torch.from_dlpack(frame) for frame in decoder.get_batch_frames(len(decoder))])

        return self.measure_decoding(decode)

    def measure_decoding(self, decode: Callable[[], Tensor], note: str = "") -> Row:
        """Clips per second of threads that decode the same clip repeatedly for a second."""
        shape, values = tuple(decode().shape), {}

        def decode_until(until: float) -> int:
            count = 0
            while not count or time.perf_counter() < until:
                decode()
                count += 1
            return count

        for threads in DECODERS:
            with ThreadPoolExecutor(threads) as pool:
                began = time.perf_counter()
                clips = sum(pool.map(decode_until, [began + 1.0] * threads))
                self.synchronize()
                values[f"{threads} decoders"] = clips / (time.perf_counter() - began)
        return Row("ok", values=values, note=f"Clips per second of {CLIP.name}, {shape}. {note}".strip())

    def run_compiled(self, precision: str) -> Row:
        """The exported network with `torch.compile`. The first forward of each batch size compiles."""
        set_tf32(precision == "tf32")
        served = ServedI3D(self.net, PRESET, DTYPES[precision]).eval().to(self.device)
        compiled = torch.compile(served, dynamic=False)
        return self.measure(
            lambda frames: compiled(frames)[0],
            precision,
            batches=self.choose_few_batches(),
            note="The first forward of each shape compiles.",
        )

    def run_tensorrt(self, precision: str) -> Row:
        """The trained network in TensorRT, built by torch_tensorrt or from ONNX for each batch size."""
        if find_spec("torch_tensorrt") is None and find_spec("tensorrt") is None:
            return Row("not installed")
        if not self.is_cuda:
            return skip_without_cuda()
        rows = []
        with torch.inference_mode(False), torch.no_grad():  # exporting fails with tensors created in inference mode
            net = build_network(self.options.width, self.reference).to(self.device, DTYPES[precision])
            for batch in self.choose_few_batches():
                x = self.normalize(self.frames[:batch]).to(DTYPES[precision])
                began = time.perf_counter()
                engine = build_tensorrt(Trained(net), x)
                note = f"Built in {time.perf_counter() - began:.0f} s for one batch size."
                rows.append(self.measure(engine, precision, batches=(batch,), normalized=True, note=note))
        return join_rows(rows)

    def choose_few_batches(self) -> tuple[int, ...]:
        """Choose a batch of one clip, and one of eight or the most that are measured."""
        return tuple(sorted({1, min(8, max(self.options.batches))}))


def build_tensorrt(net: nn.Module, x: Tensor) -> Forward:
    """Build a network with TensorRT for one input shape, by torch_tensorrt if it is installed, otherwise from ONNX."""
    if find_spec("torch_tensorrt") is None:
        return TensorRT(net, x)
    torch_tensorrt = importlib.import_module("torch_tensorrt")
    program = torch.export.export(net, (x,))
    return torch_tensorrt.dynamo.compile(program, inputs=[x], use_explicit_typing=True)  # type: ignore[no-any-return]


class TensorRT:
    """A network built by TensorRT from ONNX for one input shape, in the precision of its tensors."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        trt = importlib.import_module("tensorrt")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            torch.onnx.export(net, (x,), path, input_names=["x"], output_names=["logits"], dynamo=False)
            exported = path.read_bytes()
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(exported):
            raise RuntimeError(f"TensorRT cannot read the network: {parser.get_error(0).desc()}")
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        self.runtime = trt.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context()
        self.logits = torch.empty(tuple(self.engine.get_tensor_shape("logits")), dtype=x.dtype, device=x.device)

    def __call__(self, x: Tensor) -> Tensor:
        self.context.set_tensor_address("x", x.data_ptr())
        self.context.set_tensor_address("logits", self.logits.data_ptr())
        if not self.context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT did not run the network")
        return self.logits


# The most valuable rows come first, because those beyond the budget are skipped.
ROWS: dict[str, tuple[Callable[..., Row], tuple[Any, ...]]] = {
    "matrix rate": (Bench.measure_matrix_rate, ()),
    "as trained, eager, fp32": (Bench.run_trained, ("fp32",)),
    "exported, fp16": (Bench.run_exported, ("fp16",)),
    "exported, bf16": (Bench.run_exported, ("bf16",)),
    "exported, tf32": (Bench.run_exported, ("tf32",)),
    "as trained, eager, tf32": (Bench.run_trained, ("tf32",)),
    "exported, fp32": (Bench.run_exported, ("fp32",)),
    "reference answers": (Bench.compare_with_reference, ()),
    "new lengths, fp16": (Bench.run_new_lengths, ("fp16",)),
    "instances, fp16": (Bench.run_instances, ("fp16",)),
    "requests, fp16": (Bench.run_requests, ("fp16",)),
    "exported, contiguous, fp16": (Bench.run_exported, ("fp16", Contiguous)),
    "exported, contiguous, bf16": (Bench.run_exported, ("bf16", Contiguous)),
    "CUDA graph, fp16": (Bench.run_cuda_graph, ("fp16",)),
    "decoding, PyNvVideoCodec": (Bench.decode_by_pynvvideocodec, ()),
    "decoding, torchcodec": (Bench.decode_by_torchcodec, ()),
    "exported, contiguous, tf32": (Bench.run_exported, ("tf32", Contiguous)),
    "exported, contiguous, fp32": (Bench.run_exported, ("fp32", Contiguous)),
    "profile, fp16": (Bench.profile, ("fp16",)),
    "exported, cuDNN chooses by measuring, fp16": (Bench.run_cudnn_benchmark, ("fp16",)),
    "torch.compile, fp16": (Bench.run_compiled, ("fp16",)),
    "TensorRT, fp16": (Bench.run_tensorrt, ("fp16",)),
    "torch.compile, bf16": (Bench.run_compiled, ("bf16",)),
}


def join_rows(rows: list[Row]) -> Row:
    """Join rows that have one batch size each into one row."""
    differences = [row.max_difference for row in rows]
    return replace(
        rows[-1],
        figures=tuple(figure for row in rows for figure in row.figures),
        max_difference=None if None in differences else max(filter(None, differences), default=0.0),
    )


def skip_without_cuda() -> Row:
    return Row("skipped", note="This row needs a CUDA GPU.")


def set_tf32(on: bool) -> None:
    """Choose whether float32 products and convolutions round their operands to TF32. By default, PyTorch does so for
    convolutions but not for products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch 2.9 prefers another switch, but every version has this one
        torch.backends.cuda.matmul.allow_tf32 = on
        torch.backends.cudnn.allow_tf32 = on


@contextmanager
def use_inference_settings() -> Iterator[None]:
    """Turn off gradients and TorchScript's optimized execution, as our `config.pbtxt` does."""
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        yield


def find_reference() -> Path | None:
    """Find the folder of the reference checkpoint: in `shared`, inside the checkout or next to it."""
    folders = (ROOT / "shared" / "reference", ROOT.parent / "shared" / "reference")
    return next((folder for folder in folders if (folder / "make_checkpoint.py").is_file()), None)


def build_network(width: float, reference: Path | None) -> I3D:
    """Build the network with the reference checkpoint's weights, or with random ones."""
    if reference is None:
        return build_small_network(NUM_CLASSES, width=width)
    net = I3D(NUM_CLASSES)
    net.load_state_dict(runpy.run_path(str(reference / "make_checkpoint.py"))["build_state_dict"]())
    return net.eval()


def count_flops(num_frames: int, width: float = 1.0) -> int:
    """Count the floating-point operations of one clip: two for each multiplication of a convolution."""
    with torch.device("meta"):
        net, x = I3D(NUM_CLASSES, width=width), torch.empty(1, 3, num_frames, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


def run_program(*command: str) -> str:
    """Run a program and return what it prints, or "unknown" if it is missing or fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"


def describe_error(exc: BaseException) -> str:
    """Describe an exception in one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0] if lines else 'no message'}"[:400]


# The worker process


def work(options: Options, names: list[str], results: Connection) -> None:
    """Send the machine's description, or why there is none, then each row. None means that a new worker is needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    warnings.simplefilter("ignore")
    with use_inference_settings():
        try:
            bench = Bench(options)
            results.send(bench.describe())
        except Exception as exc:
            results.send(describe_error(exc))
            return
        for name in names:
            method, arguments = ROWS[name]
            began = time.perf_counter()
            try:
                row = method(bench, *arguments)
            except Exception as exc:
                row = Row("error", note=describe_error(exc))
            results.send(replace(row, name=name, took_s=time.perf_counter() - began))
            gc.collect()
            try:
                bench.synchronize()
            except RuntimeError:  # CUDA recovers from this error only in a new process
                results.send(None)
                return


# The parent process


def measure(options: Options, report: Report, budget_s: float) -> None:
    """Fill a report. If a worker crashes or hangs, its row is lost and another worker measures the rest.

    Raises:
        SystemExit: the network cannot be built or run on the device at all.
    """
    deadline = time.monotonic() + budget_s
    remaining = list(ROWS)
    while remaining and time.monotonic() < deadline:
        with start_worker(options, remaining) as (process, results):
            facts = receive(process, results, deadline)
            if not isinstance(facts, dict):
                reason = facts.note if isinstance(facts, Row) else facts
                if not report.rows:
                    sys.exit(f"nothing was measured on {options.device}: {reason}")
                report.add(Row("error", remaining.pop(0), reason))
                continue
            report.facts = facts
            while remaining:
                row = receive(process, results, min(deadline, time.monotonic() + ROW_LIMIT_S))
                if row is None:
                    break
                alive = row.name != ""
                row = replace(row, name=remaining.pop(0))
                report.add(row)
                reason = "" if row.status == "ok" else f": {row.note}"
                print(f"{row.took_s:6.1f} s  {row.name}: {row.status}{reason}", flush=True)
                if not alive:
                    break
    for name in remaining:
        report.add(Row("skipped", name, f"The budget of {budget_s:g} s was spent. --budget-s raises it."))


@contextmanager
def start_worker(options: Options, names: list[str]) -> Iterator[tuple[BaseProcess, Connection]]:
    """Start a worker and yield it with the connection for its results. It is killed at the end of the block."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    results, sending = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(options, list(names), sending))
    process.start()
    sending.close()
    try:
        yield process, results
    finally:
        process.kill()
        process.join()


def receive(process: BaseProcess, results: Connection, deadline: float) -> Any:
    """Receive what a worker sends next. If it ends or misses the deadline, return a row without a name that says so."""
    began = time.monotonic()
    try:
        if results.poll(max(0.0, deadline - began)):
            return results.recv()
    except EOFError:
        process.join()
        return Row(
            "error", note=f"The process ended with exit code {process.exitcode}.", took_s=time.monotonic() - began
        )
    took_s = time.monotonic() - began
    return Row("error", note=f"Stopped after {took_s:.0f} s: too long, or the budget was spent.", took_s=took_s)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("build") / "gpu", help="folder of gpu.json and gpu.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--frames", type=int, default=64, help="frames per clip, 9 or more")
    parser.add_argument("--batches", default="1,2,4,8,16,32", help="batch sizes, separated by commas")
    parser.add_argument("--width", type=float, default=1.0, help="width of the network; below 1, weights are random")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="rows beyond this many seconds are skipped")
    arguments = parser.parse_args()
    try:
        arguments.batches = tuple(sorted({int(batch) for batch in arguments.batches.split(",")}))
    except ValueError:
        parser.error(f"--batches {arguments.batches} is not a list of numbers such as 1,2,4")
    if arguments.batches[0] < 1:
        parser.error(f"--batches has {arguments.batches[0]}, but the minimum is 1")
    if arguments.frames < PRESET.min_frames:
        parser.error(f"--frames {arguments.frames} is too few: the network needs at least {PRESET.min_frames}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"PyTorch {torch.__version__} finds no CUDA GPU. --device cpu runs the same rows on the CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the worker too
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = Report(arguments.output)
    options = Options(arguments.device, arguments.frames, arguments.batches, arguments.width)
    try:
        measure(options, report, arguments.budget_s)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; {len(report.rows)} rows are in {arguments.output}")
    print((arguments.output / "gpu.md").read_text())
    print(f"written: {arguments.output / 'gpu.json'}, {arguments.output / 'gpu.md'}")


if __name__ == "__main__":
    main()
