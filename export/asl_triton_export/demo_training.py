"""Trains the demo checkpoint from nothing: a quarter-width I3D that knows the signs of the demo signer.

`python -m asl_triton_export.demo_training --to FOLDER` renders clips while it trains, keeps them and its own state in
`--work`, goes on from there after a kill, and leaves a bundle that `asl-triton export` takes. Every draw of a clip,
window and distortion follows from its number, so a run that was stopped sees what an unbroken one would have seen.

The loss is WLASL's (Li et al. 2020), half per-class binary cross-entropy of the clip, half of its steps, except that
steps at rest want silence instead of the clip's gloss, and that a cross-entropy, fading out, helps the beginning.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from asl_triton.clips import crops, resized, windows
from asl_triton.presets import INPUT_SIZE, PRESETS
from asl_triton.video import open_video
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.demo_motion import ONSET_S, REST
from asl_triton_export.demo_signer import direct, generator, render, write_video
from asl_triton_export.demo_signs import SIGNS, Face, Head, Keyframe, Sign
from asl_triton_export.i3d import I3D
from asl_triton_export.serving import ServedI3D

PRESET = PRESETS["wlasl"]
SQUARE = 256  # pixels; what the preset makes of the demo signer's clips before it crops
WIDTH = 0.25
FIRST_HELD_OUT_SEED = 1_000_000  # seeds from here on are never trained on
IDLE_SHARE = 0.1  # of the clips drawn
LONG_SHARE = 4  # one of so many seeds is a clip with long rests around a slow sign
MIRROR_SHARE = 0.15  # the demo signer's own share of left-handed signers
FRAMES_PER_STEP = 8
STEP_SPAN = 2 * FRAMES_PER_STEP  # frames: a step is the mean of two neighbours
SURE = 0.5  # confidence from which a gloss counts as recognised
FACES: tuple[Face, ...] = ("neutral", "smile", "question", "negative", "sorry")
HEADS: tuple[Head, ...] = ("still", "nod", "shake")
SAVE_EVERY = 50  # steps

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own one-cycle learning rate. `stretch` bounds window over clip, in time."""

    size: int  # pixels
    num_frames: int
    batch: int
    steps: int
    peak_rate: float
    cross_entropy: float  # its weight at the start; it fades to nothing at two thirds
    stretch: tuple[float, float]
    clips_per_sign: int
    first_seed: int


STAGES = (
    Stage(112, 32, 16, 1500, 2e-3, 1.0, (0.8, 1.3), 80, first_seed=0),
    Stage(224, 48, 8, 500, 6e-4, 0.0, (0.7, 1.2), 40, first_seed=100_000),
)


@dataclass(frozen=True)
class Batch:
    """Windows and what is wanted of them: 1 the gloss, 0 silence, NaN either.

    `frames` uint8 RGB (N, T, H, W, 3); `labels` (N,), -1 for idle; `clip` (N,); `steps` (N, S).
    """

    frames: Tensor
    labels: Tensor
    clip: Tensor
    steps: Tensor


def idle(seed: int) -> Sign:
    """A signer at rest, whose face and head move all the same."""
    return Sign("idle", (Keyframe(0.2, REST),), face=FACES[seed % 5], head=HEADS[seed % 3])


def num_frames_of(sign: Sign, seed: int) -> int | None:
    """How long a training clip is; None: as long as the sign needs."""
    if sign.gloss == "idle":
        return 32 + seed % 49
    return 72 + seed % 37 if seed % LONG_SHARE == 0 else None


def signing(sign: Sign, seed: int) -> Floats:
    """How far the hands are raised, frame by frame (T,): 0 at rest, 1 from the first keyframe to the last."""
    take = direct(sign, generator(sign.gloss, seed), num_frames=num_frames_of(sign, seed))
    onset = ONSET_S * take.execution.tempo
    rising = (take.moments_s - take.execution.lead_s) / onset
    falling = (take.num_frames / take.fps - take.execution.tail_s - take.moments_s) / onset
    return np.clip(np.minimum(rising, falling), 0, 1).astype(np.float32) * (sign.gloss != "idle")


@dataclass(frozen=True)
class Draws(Dataset[tuple[Image, int, np.float32, Floats]]):
    """Training windows of one stage by their number; clips are rendered when first drawn, and kept in `folder`."""

    stage: Stage
    folder: Path
    seed: int

    def __getitem__(self, number: int) -> tuple[Image, int, np.float32, Floats]:
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self.seed, self.stage.first_seed, number))
        label = -1 if rng.random() < IDLE_SHARE else int(rng.integers(len(SIGNS)))
        seed = self.stage.first_seed + int(rng.integers(self.stage.clips_per_sign))
        sign = SIGNS[label] if label >= 0 else idle(seed)
        clip, raised = self.clip(sign, seed), signing(sign, seed)
        at = window(len(clip), self.stage, rng)
        inside = np.clip(at, 0, len(clip) - 1)
        frames = distorted(clip[inside], self.stage.size, rng)
        active = raised >= 0.5
        seen = active[min(inside) : max(inside) + 1].sum() / max(active.sum(), 1)
        return frames, label, wanted(seen, least=0.75), step_targets(active[inside])

    def clip(self, sign: Sign, seed: int) -> Image:
        """The squared pictures of a clip (T, S, S, 3), S leaving the crop the preset's margin; not all in memory."""
        path = self.folder / str(self.stage.size) / f"{sign.gloss.replace(' ', '-')}_{seed}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            quality = 25 + (37 * seed) % 70
            pictures = render(sign, seed, num_frames=num_frames_of(sign, seed)).frames
            unfinished = path.with_suffix(f".{generator(sign.gloss, seed).integers(2**32)}.part")
            with unfinished.open("wb") as file:
                np.save(file, np.stack([squared(picture, self.stage.size, quality) for picture in pictures]))
            unfinished.replace(path)
        return np.asarray(np.load(path, mmap_mode="r"))


def squared(picture: Image, crop: int, quality: int) -> Image:
    """A rendered picture as a camera compressed it and the preset squares it, scaled as the crop is."""
    side = SQUARE * crop // INPUT_SIZE
    coded = cv2.imdecode(cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))[1], cv2.IMREAD_COLOR)
    assert coded is not None
    square = resized(coded.astype(np.uint8, copy=False), size=SQUARE)
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def window(length: int, stage: Stage, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which frames are shown (T,), evenly spaced; below 0 and from `length` on the rest is held."""
    span = float(np.clip(length * rng.uniform(*stage.stretch), stage.num_frames * 0.75, stage.num_frames * 1.9))
    slack = abs(length - span)
    start = rng.uniform(min(0.0, length - span) - 0.1 * slack, max(0.0, length - span) + 0.1 * slack)
    return np.floor(start + np.arange(stage.num_frames) * span / stage.num_frames).astype(np.int64)


def distorted(clip: Image, size: int, rng: np.random.Generator) -> Image:
    """A window cropped near the middle and mirrored, tinted, blurred and noisy at times: (T, size, size, 3)."""
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
        for index, (down, across) in enumerate(rng.integers(0, size, (len(frames), 2))):
            noisy = frames[index] + noise[down : down + size, across : across + size]
            frames[index] = np.clip(noisy, 0, 255)
    return np.ascontiguousarray(frames)


def wanted(share: float, *, least: float) -> np.float32:
    """1 where enough of the sign is seen, 0 where none is, NaN where it is anyone's guess."""
    return np.float32(1.0 if share >= least else 0.0 if share <= 0.05 else np.nan)


def step_targets(active: NDArray[np.bool_]) -> Floats:
    """What each step should say (S,), from the frames that it is the middle of."""
    count = max(math.ceil(len(active) / FRAMES_PER_STEP) - 1, 1)
    starts = range(0, count * FRAMES_PER_STEP, FRAMES_PER_STEP)
    return np.array([wanted(float(active[s : s + STEP_SPAN].mean()), least=0.6) for s in starts], np.float32)


def normalised(frames: Tensor) -> Tensor:
    """uint8 RGB (N, T, H, W, 3) as the preset says: float32 BGR (N, 3, T, H, W), channels last in memory."""
    low, high = PRESET.value_range
    return (frames.flip(4).float() / 255 * (high - low) + low).permute(0, 4, 1, 2, 3)


def loss_of(step_logits: Tensor, batch: Batch, cross_entropy: float) -> Tensor:
    """The loss of step logits (N, S, C), summed over classes; `cross_entropy` weighs the first stage's helper."""
    logits = step_logits.amax(dim=1)  # (N, S, C) -> (N, C)
    gloss = F.one_hot(batch.labels.clamp(min=0), logits.shape[1]).float() * (batch.labels >= 0)[:, None]
    clip = F.binary_cross_entropy_with_logits(logits, gloss * batch.clip.nan_to_num()[:, None], reduction="none")
    steps = F.binary_cross_entropy_with_logits(
        step_logits, gloss[:, None] * batch.steps.nan_to_num()[..., None], reduction="none"
    )
    clip_known, steps_known = ~batch.clip.isnan(), ~batch.steps.isnan()
    loss = clip.sum(dim=1)[clip_known].mean() / 2 + steps.sum(dim=2)[steps_known].mean() / 2
    named = batch.clip == 1
    named &= batch.labels >= 0
    if cross_entropy > 0 and bool(named.any()):
        loss = loss + cross_entropy * F.cross_entropy(logits[named], batch.labels[named])
    return loss


def learning_rate(share: float, peak: float) -> float:
    """One cycle: up during the first eighth, then down along a cosine to a thousandth."""
    rise = 0.125
    if share < rise:
        return peak * (0.04 + 0.96 * share / rise)
    return peak * (0.001 + 0.999 * (1 + math.cos(math.pi * (share - rise) / (1 - rise))) / 2)


def stages_of(steps: int | None) -> tuple[Stage, ...]:
    """The stages, shortened or lengthened to so many optimiser steps in all."""
    if steps is None:
        return STAGES
    total = sum(stage.steps for stage in STAGES)
    return tuple(replace(stage, steps=max(1, round(steps * stage.steps / total))) for stage in STAGES)


class Training:
    """A network and its optimiser between two steps, as saved in `work/state.pt`."""

    def __init__(self, work: Path, stages: Sequence[Stage], seed: int) -> None:
        self.work, self.stages, self.seed = work, stages, seed
        torch.manual_seed(seed)
        self.net = I3D(len(SIGNS), width=WIDTH, dropout=0.3).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 0.03  # short stages: the statistics must follow
        self.optimizer = torch.optim.AdamW(self.net.parameters(), weight_decay=0.02)
        self.stage = self.step = 0
        if self.state_path.exists():
            state: dict[str, Any] = torch.load(self.state_path, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.stage, self.step = state["stage"], state["step"]

    @property
    def state_path(self) -> Path:
        return self.work / "state.pt"

    def save(self) -> None:
        state = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        unfinished = self.state_path.with_suffix(".part")
        torch.save(state | {"stage": self.stage, "step": self.step}, unfinished)
        unfinished.replace(self.state_path)

    def losses(self, workers: int, bfloat16: bool) -> Iterator[float]:
        """Train to the end of the present stage, a step an item; the state is saved every 50 steps and at the end."""
        stage = self.stages[self.stage]
        draws = range(self.step * stage.batch, stage.steps * stage.batch)
        loader = DataLoader(
            Draws(stage, self.work, self.seed), batch_size=stage.batch, sampler=draws, num_workers=workers
        )
        self.net.train()
        for tensors in loader:
            batch = Batch(*tensors)
            share = self.step / stage.steps
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(share, stage.peak_rate)
            torch.manual_seed(self.seed + 1000 * self.stage + self.step)  # dropout's
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                output = self.net(normalised(batch.frames))
            loss = loss_of(output.step_logits.float(), batch, stage.cross_entropy * max(0.0, 1 - 1.5 * share))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
            self.optimizer.step()
            self.step += 1
            if self.step % SAVE_EVERY == 0 and self.step < stage.steps:
                self.save()
            yield float(loss.detach())
        self.stage, self.step = self.stage + 1, 0
        self.save()


def write_bundle(net: I3D, folder: Path) -> None:
    """Weights (matrices in float16, which costs no answer; the rest in float32), labels and preset."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: (tensor.half() if tensor.ndim > 1 else tensor.float()).contiguous()
        for key, tensor in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(state, folder / "weights.safetensors")
    (folder / "labels.txt").write_text("".join(f"{sign.gloss}\n" for sign in SIGNS), encoding="utf-8")
    (folder / "preset.json").write_text(PRESET.to_json() + "\n", encoding="utf-8")


@torch.inference_mode()
def evaluate(bundle: Path, videos: Path, seeds: Sequence[int], console: Console) -> float:
    """Print how the bundle, served as TorchScript, answers to VP9 clips of these seeds; gives the top-1 accuracy."""
    net = load_checkpoint(bundle / "weights.safetensors").network()
    served = torch.jit.script(ServedI3D(net, PRESET, torch.float32).eval())
    videos.mkdir(parents=True, exist_ok=True)
    right, confused, confidences, false_alarms = [], Counter[str](), [], []
    for seed in seeds:
        for sign in (*SIGNS, idle(seed)):
            path = videos / f"{sign.gloss.replace(' ', '-')}_{seed}.mp4"
            if not path.exists():
                write_video(render(sign, seed, num_frames=64 if sign.gloss == "idle" else None), path)
            with open_video(path) as video:
                images = (crop.image for crop in crops(video, PRESET, video.limits.max_frames))
                frames = torch.from_numpy(next(windows(images, PRESET)).frames)[None]
            scores = served(frames)[0][0].sigmoid()  # (C,)
            if sign.gloss == "idle":
                false_alarms.append(float(scores.max()))
                continue
            answer = SIGNS[int(scores.argmax())].gloss
            right.append(answer == sign.gloss)
            confidences.append(float(scores[SIGNS.index(sign)]))
            if not right[-1]:
                confused[f"{sign.gloss} taken for {answer}"] += 1
    accuracy = float(np.mean(right))
    console.print(f"{len(right)} held-out clips: top-1 {accuracy:.2%}, mean confidence {np.mean(confidences):.3f} and")
    console.print(
        f"above {SURE} in {np.mean(np.array(confidences) > SURE):.2%} for the right gloss. Confused: ", end=""
    )
    console.print(", ".join(f"{pair} ({times})" for pair, times in confused.most_common(8)) or "none")
    console.print(
        f"{len(false_alarms)} idle clips: mean of the highest confidence {np.mean(false_alarms):.3f}, ", end=""
    )
    console.print(f"above 0.3 in {np.mean(np.array(false_alarms) > 0.3):.2%}")
    return accuracy


def main(
    to: Annotated[Path, typer.Option(help="The folder that the bundle is written to.")],
    work: Annotated[Path, typer.Option(help="Rendered clips and the state to go on from.")] = Path("demo/training"),
    steps: Annotated[int | None, typer.Option(min=2, help="Optimiser steps in all, shared among the stages.")] = None,
    minutes: Annotated[float, typer.Option(help="Stop after so long; the same command goes on from there.")] = 600.0,
    held_out: Annotated[int, typer.Option(help="Seeds of every sign to test on at the end.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the first weights and of every draw.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that render and distort clips.")] = 1,
    bfloat16: Annotated[bool, typer.Option(help="Convolve in bfloat16; fast where the CPU has it.")] = True,
) -> None:
    """Train the demo checkpoint, or go on training it, and test it on signers never seen."""
    console = Console()
    work.mkdir(parents=True, exist_ok=True)
    training = Training(work, stages_of(steps), seed)
    until = time.monotonic() + 60 * minutes
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    while training.stage < len(training.stages):
        stage = training.stages[training.stage]
        with Progress(*columns, console=console) as progress:
            title = f"{stage.size} px"
            task = progress.add_task(title, total=stage.steps, completed=training.step)
            mean = 0.0
            for loss in training.losses(workers, bfloat16):
                mean = loss if mean == 0 else 0.95 * mean + 0.05 * loss
                progress.update(task, completed=training.step, description=f"{title}, loss {mean:.3f}")
                if training.step % SAVE_EVERY == 0:
                    progress.console.print(f"{title}, step {training.step}: loss {mean:.3f}")
                if time.monotonic() > until:
                    training.save()
                    write_bundle(training.net, to)
                    console.print(f"Out of time at step {training.step} of this stage; the same command goes on.")
                    return
        write_bundle(training.net, to)
    if held_out:
        evaluate(to, work / "held-out", range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + held_out), console)


if __name__ == "__main__":
    typer.run(main)
