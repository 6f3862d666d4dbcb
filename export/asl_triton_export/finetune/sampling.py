"""Random segments and crops of training clips, as in WLASL, and whole held-out clips, as they will be served.

WLASL's training loader (code/I3D/datasets/nslt_dataset.py, code/I3D/train_i3d.py) takes 64 consecutive frames from
anywhere in the clip and one crop of 224 x 224 from anywhere in the resized frames, and mirrors half of them. It pads
shorter clips at the end with their first or last frame, at random.

The authors of two presets do it differently: presets with centered frames always take the frames that are served, and
presets that crop to the signer's box take the crop from anywhere in the box.

Each draw depends only on (seed, turn, clip), so an interrupted run resumes with the same draws.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from asl_triton.evaluation.dataset import LabeledClip
from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import crop_frames, resample, resize_frame, sample_region
from asl_triton.video.windows import choose_centered, cut_windows
from asl_triton_export.finetune.data import LIMITS, read_clip

EpochItem = tuple[int, int]  # clip index and draw; a negative draw only pads the epoch


@dataclass(frozen=True)
class SegmentSampler:
    """Draws segments from clips."""

    preset: Preset
    num_frames: int
    flip: bool
    seed: int

    def draw(self, clip: LabeledClip, index: int, turns: Sequence[int]) -> list[Image]:
        """Draw one segment per turn, each uint8 RGB (num_frames, 224, 224, 3). Decodes the clip once."""
        chances = [np.random.default_rng((self.seed, turn, index)) for turn in turns]
        if self.preset.frames == "centered":
            _, held = choose_centered(self.read_images(clip), self.preset)
            length, chosen = self.preset.window_frames, [held for _ in turns]
        else:
            length, (held, chosen) = self.num_frames, self.choose_segments(self.read_images(clip), chances)
        if len(held) < length:
            for place, rng in enumerate(chances):
                filler = held[0] if rng.random() < 0.5 else held[-1]
                chosen[place] = [*held, *[filler] * (length - len(held))]
        return [self.cut(segment, rng) for segment, rng in zip(chosen, chances, strict=True)]

    def read_images(self, clip: LabeledClip) -> Iterator[Image]:
        """Iterate over the frames of a clip at the preset's rate: BGR, at the size that crops are taken from."""
        preset, rate = self.preset, self.preset.frame_rate
        with read_clip(clip, preset) as frames:
            for frame in frames if rate is None else resample(frames, rate, LIMITS.max_frames):
                image = resize_frame(frame.image, preset)
                if preset.framing == "signer" and (box := clip.signer) is not None:
                    samples = sample_region(image, (box.x0, box.y0, box.x1, box.y1), len(image))
                    image = np.rint(samples).astype(np.uint8)
                yield image

    def choose_segments(
        self, images: Iterator[Image], chances: Sequence[np.random.Generator]
    ) -> tuple[list[Image], list[list[Image]]]:
        """Return the last `num_frames` images (or all), and one random run of that length per generator."""
        held: deque[Image] = deque(maxlen=self.num_frames)
        chosen: list[list[Image]] = [[] for _ in chances]
        for count, image in enumerate(images, start=1):
            held.append(image)
            # Reservoir sampling, since the length is unknown: position n replaces the choice with probability 1 / n.
            for place, rng in enumerate(chances):
                if count >= self.num_frames and rng.integers(count - self.num_frames + 1) == 0:
                    chosen[place] = list(held)
        return list(held), chosen

    def cut(self, images_bgr: Sequence[Image], rng: np.random.Generator) -> Image:
        """Take the same random crop of all frames, and mirror it or not. Returns RGB."""
        height, width = images_bgr[0].shape[:2]
        top, left = int(rng.integers(height - INPUT_SIZE + 1)), int(rng.integers(width - INPUT_SIZE + 1))
        mirrored = self.flip and rng.random() < 0.5
        frames = np.empty((len(images_bgr), INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        for place, image in enumerate(images_bgr):
            crop = image[top : top + INPUT_SIZE, left : left + INPUT_SIZE, ::-1]  # BGR -> RGB
            frames[place] = crop[:, ::-1] if mirrored else crop
        return frames


@dataclass(frozen=True)
class Segments(Dataset[tuple[Tensor, int]]):
    """Training data: segments, uint8 (T, 224, 224, 3), and their classes."""

    clips: Sequence[LabeledClip]
    sampler: SegmentSampler

    def __getitem__(self, turn: EpochItem) -> tuple[Tensor, int]:
        clip = self.clips[turn[0]]
        return torch.from_numpy(self.sampler.draw(clip, turn[0], [turn[1]])[0]), clip.class_id


@dataclass(frozen=True)
class WholeClips(Dataset[tuple[Tensor, int, float]]):
    """Held-out data: windows as served, uint8 (W, T, 224, 224, 3), classes, and weights (0 for padding)."""

    clips: Sequence[LabeledClip]
    preset: Preset

    def __getitem__(self, turn: EpochItem) -> tuple[Tensor, int, float]:
        clip = self.clips[turn[0]]
        return torch.from_numpy(cut_served_windows(clip, self.preset)), clip.class_id, float(turn[1] >= 0)


def cut_served_windows(clip: LabeledClip, preset: Preset) -> Image:
    """Cut the windows that the client would send for a clip: uint8 RGB (W, T, 224, 224, 3)."""
    with read_clip(clip, preset) as frames:
        images = (crop.image for crop in crop_frames(frames, preset, LIMITS.max_frames, clip.signer))
        return np.stack([window.frames for window in cut_windows(images, preset)])


@dataclass(frozen=True)
class FeatureInputs(Dataset[int]):
    """The frames that head-only training reads once: segments to train on or, without a sampler, held-out windows.

    Clips whose features are already in `folder` come as empty tensors.
    """

    clips: Sequence[LabeledClip]
    folder: Path
    preset: Preset
    sampler: SegmentSampler | None = None
    views: int = 1

    def __len__(self) -> int:
        return len(self.clips)

    def path(self, index: int) -> Path:
        """Return the path of a clip's features: float32 (segments or windows, F, positions)."""
        return self.folder / f"{'held-out' if self.sampler is None else 'train'}-{index}.npy"

    def __getitem__(self, index: int) -> tuple[Tensor, str]:  # type: ignore[override]
        path, clip = self.path(index), self.clips[index]
        if path.exists():
            return torch.empty(0, dtype=torch.uint8), str(path)
        if self.sampler is None:
            return torch.from_numpy(cut_served_windows(clip, self.preset)), str(path)
        return torch.from_numpy(np.stack(self.sampler.draw(clip, index, range(self.views)))), str(path)


class CachedFeatures(Dataset[tuple[Tensor, int] | tuple[Tensor, int, float]]):
    """The features of `FeatureInputs`, held in memory."""

    def __init__(self, views: FeatureInputs) -> None:
        self.views = views
        self.features = [torch.from_numpy(np.load(views.path(index))) for index in range(len(views))]

    def __getitem__(self, turn: EpochItem) -> tuple[Tensor, int] | tuple[Tensor, int, float]:
        features, class_id = self.features[turn[0]], self.views.clips[turn[0]].class_id
        if self.views.sampler is None:
            return features, class_id, float(turn[1] >= 0)
        return features[turn[1]], class_id


class EpochSampler(Sampler[EpochItem]):
    """Yields every clip once per epoch, shuffled by seed and epoch, or in order if `seed` is None.

    Clips are divided evenly among `world` processes, repeating the first ones if necessary. `views` is the number of
    draws per clip to cycle through; None makes a new draw in each epoch.
    """

    def __init__(self, count: int, rank: int, world: int, seed: int | None = None, views: int | None = None) -> None:
        self.count, self.rank, self.world, self.seed, self.views = count, rank, world, seed, views
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch; called by Lightning."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.world)

    def __iter__(self) -> Iterator[EpochItem]:
        shuffled = self.seed is not None
        order = list(range(self.count))
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count).tolist()
        turn = self.epoch % self.views if self.views else self.epoch
        turns = [(index, turn) for index in order]
        again = [(index, turn if shuffled else -1) for index, turn in turns]
        missing = len(self) * self.world - self.count
        while missing > 0:
            turns += again[:missing]
            missing = len(self) * self.world - len(turns)
        return iter(turns[self.rank :: self.world])
