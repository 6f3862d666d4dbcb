"""Trains the demo checkpoint from scratch: a quarter-width I3D that knows the signs of the demo signer.

`python -m asl_triton_demo.training --to FOLDER` renders clips while it trains, keeps them and its state in `--work`,
resumes if it was killed, and writes a bundle for `asl-triton export`. Every random choice of a clip, window and
distortion depends only on its number, so a resumed run sees the same data as an uninterrupted one.

The loss is WLASL's (Li et al. 2020), half per-class binary cross-entropy of the clip, half of its steps, except that
the target of steps at rest is silence instead of the clip's gloss. Two aids fade out during the first stage: a
cross-entropy between glosses, and subtracting the clip's mean picture, without which the network sees rooms and clothes
long before it sees hands.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from asl_triton.files import atomic_write
from asl_triton.models.card import ModelCard
from asl_triton.presets import INPUT_SIZE, PRESETS
from asl_triton.video.preprocessing import crop_frames, resize_image
from asl_triton.video.reader import open_video
from asl_triton.video.windows import cut_windows
from asl_triton_demo.motion import ONSET_S, REST
from asl_triton_demo.signer import make_generator, plan_take, render, write_video
from asl_triton_demo.signs import SIGNS, Face, Head, Keyframe, Sign
from asl_triton_export.bundle import write_bundle
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.formats.torchscript import ServedI3D
from asl_triton_export.i3d import I3D, normalize

PRESET = PRESETS["wlasl"]
CARD = ModelCard(
    purpose="twenty ASL signs, by the animated signer of asl-triton's own clips; for trying things out",
    caveat="demo model: knows an animated signer, not people",
)  # no threshold: `asl-triton evaluate --write-threshold` measures it
SQUARE = 256  # pixels; the preset resizes the demo signer's clips to this before it crops
FIRST_HELD_OUT_SEED = 1_000_000  # seeds from here on are never trained on
IDLE_SHARE = 0.1  # of the windows drawn
MIRROR_SHARE = 0.15  # the demo signer's own share of left-handed signers

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own learning-rate cycle. `stretch` bounds a window's length over the clip's."""

    size: int  # pixels
    num_frames: int
    batch: int
    steps: int
    peak_rate: float
    from_nothing: bool  # whether the aids for an untrained network fade out during this stage
    stretch: tuple[float, float]
    clips_per_sign: int
    first_seed: int


STAGES = (
    Stage(112, 32, 16, 900, 2e-3, True, (0.8, 1.3), 80, first_seed=0),
    Stage(224, 48, 8, 240, 6e-4, False, (0.7, 1.2), 40, first_seed=100_000),
)


def make_idle_sign(seed: int) -> Sign:
    """Make a sign in which the hands are at rest, but face and head move."""
    return Sign("idle", (Keyframe(0.2, REST),), face=get_args(Face)[seed % 5], head=get_args(Head)[seed % 3])


def draw_num_frames(sign: Sign, seed: int) -> int | None:
    """Return the length of a training clip, or None for as long as the sign needs."""
    if sign.gloss == "idle":
        return 32 + seed % 49
    return 72 + seed % 37 if seed % 4 == 0 else None  # long rests around a slow sign


def find_signing_frames(sign: Sign, seed: int) -> NDArray[np.bool_]:
    """Return the frames of a training clip (T,) in which the hands are closer to the sign than to rest."""
    take = plan_take(sign, make_generator(sign.gloss, seed), num_frames=draw_num_frames(sign, seed))
    half_onset = ONSET_S * take.execution.tempo / 2
    start = take.execution.lead_s + half_onset
    end = take.num_frames / take.fps - take.execution.tail_s - half_onset
    return (start <= take.moments_s) & (take.moments_s <= end) & (sign.gloss != "idle")


@dataclass(frozen=True)
class Draws(Dataset[tuple[Image, int, np.float32, Floats]]):
    """Training windows of one stage, by number. Clips are rendered when they are first drawn, and kept in `folder`."""

    stage: Stage
    folder: Path
    seed: int

    def __getitem__(self, number: int) -> tuple[Image, int, np.float32, Floats]:
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self.seed, self.stage.first_seed, number))
        label = -1 if rng.random() < IDLE_SHARE else int(rng.integers(len(SIGNS)))
        seed = self.stage.first_seed + int(rng.integers(self.stage.clips_per_sign))
        sign = SIGNS[label] if label >= 0 else make_idle_sign(seed)
        clip, active = self.clip(sign, seed), find_signing_frames(sign, seed)
        shown = np.clip(window(len(clip), self.stage, rng), 0, len(clip) - 1)
        frames = distort(clip[shown], self.stage.size, rng)
        seen = active[min(shown) : max(shown) + 1].sum() / max(active.sum(), 1)
        return frames, label, make_class_target(seen, least=0.75), make_step_targets(active[shown])

    def clip(self, sign: Sign, seed: int) -> Image:
        """Return the pictures of a clip before the crop (T, S, S, 3), memory-mapped from its file."""
        path = self.folder / str(self.stage.size) / f"{sign.gloss.replace(' ', '-')}_{seed}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = render(sign, seed, num_frames=draw_num_frames(sign, seed)).frames
            quality = 25 + (37 * seed) % 70
            with atomic_write(path, shared=True) as file:
                np.save(file, np.stack([square(picture, self.stage.size, quality) for picture in pictures]))
        return np.asarray(np.load(path, mmap_mode="r"))


def square(picture: Image, crop: int, quality: int) -> Image:
    """Compress a rendered picture like a camera, square it like the preset, and scale it like the crop."""
    side = SQUARE * crop // INPUT_SIZE
    code = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    square = resize_image(np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8), size=SQUARE)
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def window(length: int, stage: Stage, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose evenly spaced frames to show (T,). Frames below 0 or from `length` on repeat the rest at that end."""
    span = float(np.clip(length * rng.uniform(*stage.stretch), stage.num_frames * 0.75, stage.num_frames * 1.9))
    slack = abs(length - span)
    start = rng.uniform(min(0.0, length - span) - 0.1 * slack, max(0.0, length - span) + 0.1 * slack)
    frames = start + np.arange(stage.num_frames) * span / stage.num_frames
    return np.asarray(np.floor(frames), np.int64)


def distort(clip: Image, size: int, rng: np.random.Generator) -> Image:
    """Crop a window near the middle, tint it, and sometimes mirror it, blur it or add noise: (T, size, size, 3)."""
    top, left = rng.integers(0, clip.shape[1] - size + 1, 2)
    frames = clip[:, top : top + size, left : left + size]
    if rng.random() < MIRROR_SHARE:
        frames = frames[:, :, ::-1]
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.92, 1.08, 3)
    values = np.arange(256)[:, None] * gain + rng.uniform(-20, 20)
    table = np.clip(values, 0, 255).astype(np.uint8)  # (256, 3)
    frames = np.stack([table[frames[..., channel], channel] for channel in range(3)], axis=-1)
    if rng.random() < 0.3:
        sigma = rng.uniform(0.3, 1.2) * size / INPUT_SIZE
        frames = np.stack([np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8) for frame in frames])
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(1, 8), (2 * size, 2 * size, 1)).astype(np.int16)
        for frame, (down, across) in zip(frames, rng.integers(0, size, (len(frames), 2)), strict=True):
            frame[:] = np.clip(frame + noise[down : down + size, across : across + size], 0, 255)
    return np.ascontiguousarray(frames)


def make_class_target(share: float, *, least: float) -> np.float32:
    """Return 1 if enough of the sign is visible, 0 if none of it is, and NaN if it is anyone's guess."""
    return np.float32(1.0 if share >= least else 0.0 if share <= 0.05 else np.nan)


def make_step_targets(active: NDArray[np.bool_]) -> Floats:
    """Return the target of each step (S,), from the 16 frames around the two positions that it averages."""
    starts = range(0, max(len(active) - 8, 1), 8)
    return np.array(
        [make_class_target(float(active[start : start + 16].mean()), least=0.6) for start in starts], np.float32
    )


def compute_loss(step_logits: Tensor, labels: Tensor, clip: Tensor, steps: Tensor, cross_entropy: float) -> Tensor:
    """Compute the loss of step logits (N, S, C) of clips whose glosses are `labels` (N,).

    `clip` (N,) and `steps` (N, S) are the targets: 1 for the gloss, 0 for silence, NaN for either.
    """
    logits = step_logits.amax(dim=1)  # (N, S, C) -> (N, C)
    gloss = F.one_hot(labels.clamp(min=0), logits.shape[1])  # -1 is idle, whose target is silence anyway
    halves = []
    for given, one, share in ((logits, gloss, clip), (step_logits, gloss[:, None], steps)):
        known, target = ~share.isnan(), one * share[..., None]
        loss = F.binary_cross_entropy_with_logits(given[known], target[known], reduction="sum")
        halves.append(loss / known.sum().clamp(min=1) / 2)
    signed = clip == 1
    if cross_entropy > 0 and bool(signed.any()):
        halves.append(cross_entropy * F.cross_entropy(logits[signed], labels[signed]))
    return torch.stack(halves).sum()


def schedule_learning_rate(share: float, peak: float) -> float:
    """Return the rate at a point of one cycle: up during the first eighth, then down along a cosine to a thousandth."""
    rising = min(0.04 + 7.68 * share, 1.0)
    falling = (1 + math.cos(math.pi * max(share - 0.125, 0.0) / 0.875)) / 2
    return peak * rising * (0.001 + 0.999 * falling)


def fade(share: float, start: float, end: float) -> float:
    """Return 1 until `start` and 0 from `end` on, with a straight line in between."""
    return min(max((end - share) / (end - start), 0.0), 1.0)


class Training:
    """A network and its optimizer between two steps, as saved in `work/state.pt`."""

    def __init__(self, work: Path, stages: Sequence[Stage], seed: int) -> None:
        self.work, self.stages, self.seed = work, stages, seed
        torch.manual_seed(seed)
        self.net = I3D(len(SIGNS), width=0.25, dropout=0.2)
        self.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 0.03  # stages are short, so the statistics must adapt quickly
        self.optimizer = torch.optim.AdamW(self.net.parameters(), weight_decay=0.02)
        self.step = 0  # counts through all stages
        self.state_path = work / "state.pt"
        if self.state_path.exists():
            state: dict[str, Any] = torch.load(self.state_path, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save(self) -> None:
        state = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        with atomic_write(self.state_path) as file:
            torch.save(state, file)

    def losses(self, workers: int, bfloat16: bool) -> Iterator[float]:
        """Train through all stages and yield the loss of each step; the state is saved every 50 steps."""
        start = 0
        for stage in self.stages:
            yield from self._stage_losses(stage, start, workers, bfloat16)
            start += stage.steps

    def _stage_losses(self, stage: Stage, start: int, workers: int, bfloat16: bool) -> Iterator[float]:
        draws = range(max(self.step - start, 0) * stage.batch, stage.steps * stage.batch)
        clips = Draws(stage, self.work, self.seed)
        self.net.train()
        for frames, labels, clip, steps in DataLoader(clips, stage.batch, sampler=draws, num_workers=workers):
            share = (self.step - start) / stage.steps
            torch.manual_seed(self.seed + self.step)  # for dropout
            for group in self.optimizer.param_groups:
                group["lr"] = schedule_learning_rate(share, stage.peak_rate)
            x = normalize(frames, PRESET)
            if stage.from_nothing:
                x -= fade(share, 0.25, 0.6) * x.mean(dim=2, keepdim=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                output = self.net(x)
            cross_entropy = fade(share, 0.0, 0.67) if stage.from_nothing else 0.0
            loss = compute_loss(output.step_logits.float(), labels, clip, steps, cross_entropy)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 20.0)
            self.optimizer.step()
            self.step += 1
            if self.step % 50 == 0:
                self.save()
            yield loss.item()


@torch.inference_mode()
def evaluate(bundle: Path, videos: Path, seeds: Sequence[int]) -> None:
    """Print how the bundle, as TorchScript, recognizes VP9 clips of these seeds. Missing clips are written first."""
    net = load_checkpoint(bundle / "weights.safetensors").network()
    console = Console()
    served = torch.jit.script(ServedI3D(net, PRESET, torch.float32).eval())
    videos.mkdir(parents=True, exist_ok=True)
    confused = Counter[str]()
    right, alarms = [], []
    for seed in seeds:
        for label, sign in enumerate((*SIGNS, make_idle_sign(seed))):
            path = videos / f"{sign.gloss.replace(' ', '-')}_{seed}.mp4"
            if not path.exists():
                write_video(render(sign, seed, num_frames=64 if sign.gloss == "idle" else None), path)
            with open_video(path) as video:
                images = (crop.image for crop in crop_frames(video, PRESET, video.limits.max_frames))
                frames = torch.from_numpy(next(cut_windows(images, PRESET)).frames)
            confidences = served(frames[None])[0][0].sigmoid()  # (C,)
            best = int(confidences.argmax())
            if sign.gloss == "idle":
                alarms.append(float(confidences[best]))
                continue
            right.append(float(confidences[label]))
            if best != label:
                confused[f"{sign.gloss} as {SIGNS[best].gloss}"] += 1
    mean, sure = np.mean(right), np.mean(np.array(right) > 0.5)
    console.print(f"{len(right)} held-out clips: top-1 {1 - confused.total() / len(right):.2%}")
    console.print(f"confidence of the right gloss: mean {mean:.3f}, above 0.5 in {sure:.2%}")
    console.print(f"highest confidence of {len(alarms)} idle clips: mean {np.mean(alarms):.3f}, max {max(alarms):.3f}")
    console.print(f"confused: {dict(confused) or 'none'}")


def main(
    to: Annotated[Path, typer.Option(help="The folder that the bundle is written to.")],
    work: Annotated[Path, typer.Option(help="Folder for rendered clips and training state.")] = Path("demo/training"),
    steps: Annotated[int | None, typer.Option(min=2, help="Total optimizer steps, split among the stages.")] = None,
    minutes: Annotated[float, typer.Option(help="Stop after this time; the same command resumes.")] = 600.0,
    held_out: Annotated[int, typer.Option(help="Seeds of every sign to test on at the end.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed for the initial weights and every random choice.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that render and distort clips; 0 for this one.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads for the network. Use several only if cores are idle.")] = 1,
    bfloat16: Annotated[bool, typer.Option(help="Convolve in bfloat16, fast on CPUs that support it.")] = True,
) -> None:
    """Train the demo checkpoint, or resume its training, and test it on unseen clips."""
    total = sum(stage.steps for stage in STAGES)
    stages = [replace(s, steps=max(1, round(s.steps * (steps or total) / total))) for s in STAGES]
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    training = Training(work, stages, seed)
    until = time.monotonic() + 60 * minutes
    with Progress() as progress:
        task = progress.add_task("training", total=sum(stage.steps for stage in stages))
        for loss in training.losses(workers, bfloat16):
            progress.update(task, completed=training.step, description=f"loss {loss:.3f}")
            if time.monotonic() > until:
                break
    training.save()
    # Kernels in float16, which changes no answer; the rest in float32.
    state = {key: t.half() if t.ndim > 1 else t for key, t in training.net.state_dict().items()}
    write_bundle(to, state, [sign.gloss for sign in SIGNS], PRESET, CARD)
    if held_out:
        evaluate(to, work / "held-out", range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + held_out))


if __name__ == "__main__":
    typer.run(main)
