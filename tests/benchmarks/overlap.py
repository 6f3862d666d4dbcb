"""What it would save to compute each frame of overlapping windows only once, and what it would change.

    python -m tests.benchmarks.overlap
    python -m tests.benchmarks.overlap --films timelines

82 % of I3D's operations lie before the second temporal pooling, up to Mixed_3c. A position there stands for 2 frames
and depends on 19. The first table compares CPU time per window of 64 frames, on one thread, with random weights:

- apart: each window by itself, as today.
- shared: one request of several windows, one every 32 frames. The network up to Mixed_3c runs once over all frames,
  the rest once per window.
- long: one request of the same frames, which the whole network treats as one clip (`--window`, `--stride`).
- live: one window every 8 frames. Each layer's past activations are kept between requests.

The other tables use the demo checkpoint. At the edges of a window, 'same' padding puts zeros where the neighboring
frames would be; the other ways see those frames. The second table shows how much this changes the step logits by their
place in the window, and the third how it affects the timelines of `tests.benchmarks.timeline`'s films.

A server keeps memory between forwards, so measure with its settings, `CPU_SETTINGS` in
`asl_triton_deploy.triton_binary` (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_, THP_MEM_ALLOC_ENABLE).
docs/overlapping-windows.md has the figures and the conclusions.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from asl_triton.labels import read_labels
from asl_triton.live.rules import LiveRules
from asl_triton.postprocessing.segmentation import Segmenter
from asl_triton.postprocessing.stitching import Stitcher, with_window
from asl_triton.presets import INPUT_SIZE, PRESETS, Preset
from asl_triton.results import Segment, Step
from asl_triton.video.preprocessing import Crop, crop_frames
from asl_triton.video.reader import open_video
from asl_triton.video.shots import number_shots
from asl_triton.video.windows import Window, WindowTiming, cut_windows_by_shot
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import fastest_precision
from asl_triton_export.formats.torchscript import DTYPES, ServedI3D, halve_by_three
from asl_triton_export.i3d import I3D
from tests.benchmarks.film import FPS, FilmSign, write_film
from tests.benchmarks.timeline import FIRST_SEED, KINDS, format_score, score_timeline
from tests.networks import build_small_network
from tests.paths import DEMO_BUNDLE

PRESET = PRESETS["wlasl"]
WINDOW, STRIDE = PRESET.window_frames, PRESET.stride_frames
LIVE_STRIDE = LiveRules().stride_frames
POSITION_FRAMES = 2  # frames per position of the shared part
LONGEST = WINDOW + 7 * STRIDE  # frames of the longest request: eight windows


class SplitNetwork:
    """A served network in two parts: `compute_shared` up to Mixed_3c, `compute_steps` from there on."""

    def __init__(self, net: I3D, precision: str) -> None:
        self.served = ServedI3D(net, PRESET, DTYPES[precision]).eval()

    def compute_shared(self, frames: Tensor) -> Tensor:
        """From uint8 RGB frames (N, T, 224, 224, 3) to activations (N, 480, T/2, 28, 28)."""
        return self.served.mixed_3(self.compute_2c(self.compute_2b(self.served.pad_clip(frames))))

    def compute_2b(self, padded: Tensor) -> Tensor:
        """Run a padded clip (N, 4, T', H', W') through the first convolution, its pooling and Conv3d_2b."""
        stem = self.served.stem
        x = F.conv3d(padded, stem.weight, stem.bias, stride=2)
        return self.served.conv_2b(halve_by_three(halve_by_three(x, 3), 4).relu_())

    def compute_2c(self, x: Tensor) -> Tensor:
        """Run Conv3d_2c and its pooling."""
        return halve_by_three(halve_by_three(self.served.conv_2c(x), 3), 4)

    def compute_steps(self, shared: Tensor) -> Tensor:
        """From the activations of windows (N, 480, T/2, 28, 28) to step logits (N, S, C)."""
        x = F.max_pool3d(shared, 3, 2, [shared.size(axis) % 2 for axis in (2, 3, 4)], 1, True)
        x = F.max_pool3d(self.served.mixed_4(x), 2, 2, 0, 1, True)
        positions = self.served.mixed_5(x).float().mean(dim=(3, 4)).transpose(1, 2)
        steps = (positions[:, 1:] + positions[:, :-1]) / 2 if positions.size(1) > 1 else positions
        return self.served.classifier(steps)

    def run_apart(self, frames: Tensor) -> Tensor:
        """From windows (N, T, 224, 224, 3) to step logits (N, S, C), each window by itself."""
        return torch.cat([self.served(window[None])[1] for window in frames])

    def run_shared(self, frames: Tensor, starts: Sequence[int], length: int = WINDOW) -> Tensor:
        """From a request (T, 224, 224, 3) with windows at these even frames to step logits (N, S, C)."""
        shared = self.compute_shared(frames[None])
        windows = [shared.narrow(2, start // POSITION_FRAMES, length // POSITION_FRAMES) for start in starts]
        return torch.cat([self.compute_steps(window) for window in windows])


class LiveNetwork:
    """A network that keeps the past activations that the next window of a stream needs, layer by layer.

    The last positions of a layer saw zeros instead of future frames, so they are computed again when the next frames
    arrive: 2 of the first convolution, 3 of Conv3d_2c, 4 of Mixed_3b, 5 of Mixed_3c.
    """

    def __init__(self, network: SplitNetwork, first: Tensor) -> None:
        """Start with a whole window (1, T, 224, 224, 3)."""
        self.network = network
        mixed_3b, _ = network.served.mixed_3
        x_2b = network.compute_2b(network.served.pad_clip(first))
        x_2c = network.compute_2c(x_2b)
        x_3b = mixed_3b(x_2c)
        self.frames, self.x_2b, self.x_2c, self.x_3b = first, x_2b, x_2c, x_3b
        self.shared = network.served.mixed_3[1](x_3b)

    def run(self, frames: Tensor) -> Tensor:
        """From an even number of new frames (1, T, 224, 224, 3) to the newest window's step logits (1, S, C)."""
        served, count = self.network.served, frames.size(1) // POSITION_FRAMES
        mixed_3b, mixed_3c = served.mixed_3
        # The first convolution pads 2 frames before the clip and 3 after it. Here, those before it are known.
        padded = served.pad_clip(torch.cat([self.frames[:, -6:], frames], dim=1))[:, :, 2:]
        self.frames = torch.cat([self.frames, frames], dim=1)[:, -WINDOW:]
        self.x_2b = append(self.x_2b, self.network.compute_2b(padded), count)
        self.x_2c = append(self.x_2c, self.network.compute_2c(self.x_2b[:, :, -count - 4 :])[:, :, 1:], count)
        self.x_3b = append(self.x_3b, mixed_3b(self.x_2c[:, :, -count - 5 :])[:, :, 1:], count)
        self.shared = append(self.shared, mixed_3c(self.x_3b[:, :, -count - 6 :])[:, :, 1:], count)
        return self.network.compute_steps(self.shared)


def append(past: Tensor, newest: Tensor, count: int) -> Tensor:
    """Move the activations of a window on by `count` positions. `newest` also replaces the last ones of `past`."""
    return torch.cat([past[:, :, count : past.size(2) + count - newest.size(2)], newest], dim=2)


def measure_speed(precision: str, width: float, counts: Sequence[int], rounds: int) -> Table:
    """Measure the CPU seconds per window of each way, in turns. The first round only warms up."""
    network = SplitNetwork(build_small_network(2000, width=width), precision)
    frames = torch.randint(0, 256, (WINDOW + STRIDE * (max(counts) - 1), INPUT_SIZE, INPUT_SIZE, 3), dtype=torch.uint8)
    live = LiveNetwork(network, frames[None, :WINDOW])

    def run_shared(count: int) -> Callable[[], object]:
        return lambda: network.run_shared(frames[: WINDOW + STRIDE * (count - 1)], range(0, STRIDE * count, STRIDE))

    def run_long(count: int) -> Callable[[], object]:
        return lambda: network.served(frames[None, : WINDOW + STRIDE * (count - 1)])

    ways: dict[str, tuple[int, Callable[[], object]]] = {"apart": (1, lambda: network.served(frames[None, :WINDOW]))}
    ways |= {f"shared, {count} windows per request": (count, run_shared(count)) for count in counts}
    ways |= {f"long, {count} windows per request": (count, run_long(count)) for count in counts}
    ways["live, one window per request"] = (1, lambda: live.run(frames[None, :LIVE_STRIDE]))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, (count, forward) in ways.items():
            began_s = time.process_time()
            forward()
            if turn:
                seconds[way].append((time.process_time() - began_s) / count)
    table = Table("way", "CPU s per window", "times as fast", title=f"{precision}, one thread")
    apart_s = statistics.median(seconds["apart"])
    for way, taken in seconds.items():
        per_window_s = statistics.median(taken)
        table.add_row(way, f"{per_window_s:.3f}", f"{apart_s / per_window_s:.2f}")
    return table


def read_shots(film: Path, until_s: float) -> Iterator[list[Crop]]:
    """Yield the crops of a film, shot by shot, up to the end of the shot at `until_s`."""
    with open_video(film) as video:
        crops = number_shots(crop_frames(video, PRESET, 10**6))
        for _, shot in groupby(crops, key=attrgetter("shot")):
            shot_crops = list(shot)
            yield shot_crops
            if shot_crops[-1].time_s >= until_s:
                return


Request = list[tuple[Window, WindowTiming]]


def join_windows(windows: Iterable[tuple[Window, WindowTiming]], longest: int) -> Iterator[Request]:
    """Group the windows of a shot into requests of up to `longest` frames.

    A window that starts an odd number of frames into a request cannot share its positions, so it starts a new request.
    """
    request: Request = []
    for window, timing in windows:
        begin = request[0][0].start if request else window.start
        if (window.start - begin) % POSITION_FRAMES or window.start + len(window.frames) - begin > longest:
            yield request
            request = []
        request.append((window, timing))
    yield request


def run_request(network: SplitNetwork, request: Request) -> list[Tensor]:
    """Compute the step logits (S, C) of each window of a request."""
    begin, frames = request[0][0].start, request[0][0].frames
    if len(request) == 1:
        return [network.run_apart(torch.from_numpy(frames)[None])[0]]
    for window, _ in request[1:]:
        frames = np.concatenate([frames, window.frames[begin + len(frames) - window.start :]])
    return list(network.run_shared(torch.from_numpy(frames), [window.start - begin for window, _ in request]))


class FilmReader:
    """Segments a film shot by shot, with one way to cut it into requests. `cpu_s` does not include decoding."""

    def __init__(self, network: SplitNetwork, labels: Sequence[str], preset: Preset, longest: int) -> None:
        self.network, self.preset, self.longest = network, preset, longest
        self.segmenter, self.segments, self.cpu_s = Segmenter(labels), list[Segment](), 0.0

    def add(self, shot: Sequence[Crop]) -> None:
        """Add the next shot."""
        stitcher = Stitcher(self.preset)
        steps: list[Step] = []
        for request in join_windows(cut_windows_by_shot(shot, self.preset, FPS), self.longest):
            began_s = time.process_time()
            answers = run_request(self.network, request)
            self.cpu_s += time.process_time() - began_s
            for (_, timing), answer in zip(request, answers, strict=True):
                steps += stitcher.add(timing, answer.numpy())
        for step in steps + stitcher.finish():
            self.segments += self.segmenter.push(step)

    def finish(self) -> list[Segment]:
        """Return all segments. Call after the last shot."""
        return sorted(self.segments + self.segmenter.finish(), key=lambda segment: segment.start_s)


def measure_film(
    network: SplitNetwork, film: Path, signed: Sequence[FilmSign], until_s: float, lengths: Sequence[int]
) -> Table:
    """Count the found and the false signs of a film for each way."""
    labels = read_labels(DEMO_BUNDLE / "labels.txt")
    apart, length_s = with_window(PRESET), 0.0
    ways = {
        f"apart ({WINDOW} every {STRIDE})": FilmReader(network, labels, apart, WINDOW),
        f"shared (up to {LONGEST} frames)": FilmReader(network, labels, apart, LONGEST),
    }
    for length in lengths:
        preset = with_window(PRESET, length, length - STRIDE)
        ways[f"long ({length} every {length - STRIDE})"] = FilmReader(network, labels, preset, length)
    for shot in read_shots(film, until_s):
        length_s = shot[-1].time_s + 1 / FPS
        for reader in ways.values():
            reader.add(shot)
    shown = [sign for sign in signed if sign.end_s <= length_s]
    table = Table(title=f"{film.name}: {len(shown)} signs in {length_s:.0f} s", title_justify="left")
    for name in ("way", "found", "false per minute", "gloss errors", "borders ms", "starts ms", "ends ms", "CPU s"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for way, reader in ways.items():
        table.add_row(way, *format_score(score_timeline(reader.finish(), shown, length_s)), f"{reader.cpu_s:.0f}")
    return table


def measure_differences(network: SplitNetwork, frames: Tensor) -> Table:
    """Measure how much step logits differ from those of separate windows, by the step's place in the window.

    `frames` (T, 224, 224, 3) are consecutive. The first and the last window of a request are left out, because they are
    padded with zeros as separate windows are.
    """
    shared_starts = range(0, len(frames) - WINDOW + 1, STRIDE)
    live_starts = range(0, len(frames) - WINDOW + 1, LIVE_STRIDE)
    starts = sorted({*shared_starts, *live_starts})
    apart = {start: network.run_apart(frames[None, start : start + WINDOW])[0] for start in starts}
    live = LiveNetwork(network, frames[None, :WINDOW])
    ways = {
        "shared": (network.run_shared(frames, shared_starts)[1:-1], shared_starts[1:-1]),
        "live": ([live.run(frames[None, s + WINDOW - LIVE_STRIDE : s + WINDOW])[0] for s in live_starts[1:]],
                 live_starts[1:]),
    }  # fmt: skip
    spread = float(np.ptp(torch.stack(list(apart.values())).numpy()))
    table = Table(title=f"difference of step logits, whose spread is {spread:.1f}", title_justify="left")
    for name in ("step", *map(str, range(1, WINDOW // 8))):
        table.add_column(name, justify="left" if name == "step" else "right")
    for way, (answers, answer_starts) in ways.items():
        pairs = zip(answers, answer_starts, strict=True)
        difference = torch.stack([answer - apart[start] for answer, start in pairs]).abs().numpy()  # (N, S, C)
        table.add_row(f"{way}, median", *(f"{value:.3f}" for value in np.median(difference, axis=(0, 2))))
        table.add_row(f"{way}, largest", *(f"{value:.2f}" for value in difference.max(axis=(0, 2))))
    return table


def load_demo(precision: str) -> SplitNetwork:
    """Load the demo checkpoint."""
    return SplitNetwork(load_checkpoint(DEMO_BUNDLE / "weights.safetensors").network(), precision)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the speed table; 0 skips it")
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8], help="windows per request")
    parser.add_argument("--width", type=float, default=1.0, help="width of the network; the published one has 1")
    parser.add_argument("--precision", choices=DTYPES, default=fastest_precision())
    parser.add_argument("--films", type=Path, help="also measure films, which are kept in this folder")
    parser.add_argument("--seconds", type=int, default=600, help="length of each film")
    parser.add_argument("--signs", type=int, default=60, help="signs in each film")
    parser.add_argument("--until", type=float, default=600, help="stop after this many seconds of each film")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[128, 288], help="window lengths of the way `long`, in frames"
    )
    arguments = parser.parse_args()
    console = Console(width=120)
    torch.set_num_threads(1)
    with torch.inference_mode():
        if arguments.rounds:
            console.print(measure_speed(arguments.precision, arguments.width, arguments.windows, arguments.rounds))
        if arguments.films is None:
            return
        for number, (kind, signs_per_scene) in enumerate(KINDS.items()):
            seed = FIRST_SEED + 1000 * number
            film = arguments.films / f"{FIRST_SEED}-{arguments.seconds}-{arguments.signs}-{signs_per_scene}.mp4"
            signed = write_film(
                film, seconds=arguments.seconds, signs=arguments.signs, signs_per_scene=signs_per_scene, seed=seed
            )
            if not number:
                shot = next(read_shots(film, 0.0))
                frames = torch.from_numpy(np.stack([crop.image for crop in shot[:LONGEST]]))
                console.print(measure_differences(load_demo("fp32"), frames))
            console.print(kind)
            demo = load_demo(arguments.precision)
            console.print(measure_film(demo, film, signed, arguments.until, arguments.lengths))


if __name__ == "__main__":
    main()
