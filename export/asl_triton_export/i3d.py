"""I3D, the inflated Inception network, in the form that is trained.

Carreira & Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017
(arXiv:1705.07750), figure 3. Module names are those of the PyTorch port that WLASL's and bsl1k's checkpoints were
trained with (`Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b1a.bn.running_mean`, ...), so their state dicts load unchanged.
Padding is TensorFlow's 'same', whose amount and side depend on the length of each axis at every stride-2 stage, so
results are exact for any number of frames from 9 on.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asl_triton.presets import Preset

MIN_FRAMES = 9  # the smallest number that leaves two time positions, which one step averages
FEATURE_CHANNELS = 1024  # at width 1
STEM_CHANNELS = 64  # at width 1; read back from a checkpoint's shapes to learn its width

# Output channels of a Mixed block's branches: b0 (1x1x1), b1a -> b1b, b2a -> b2b (1x1x1 -> 3x3x3), b3b (after a pool).
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Output:
    """The network's output: `step_logits` (N, S, C) and `features` (N, F, T/8), the last block's activations."""

    step_logits: Tensor
    features: Tensor


def scaled(channels: int, width: float) -> int:
    """Return the number of channels of a layer at a width multiplier, at least one."""
    return max(1, round(channels * width))


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's 'same' padding of one axis: (before, after)."""
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Zero-pad the last three axes of (N, C, T, H, W) with 'same' padding."""
    pads: list[int] = []
    for axis in (4, 3, 2):  # F.pad counts from the last axis
        pads += same_padding(x.shape[axis], kernel[axis - 2], stride[axis - 2])
    return F.pad(x, pads)


class Unit3D(nn.Module):
    """Convolution with 'same' padding, BatchNorm (eps 0.001), ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=0.001, momentum=0.01)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))))


class MaxPool3dSame(nn.Module):
    """Max pooling with 'same' padding by zeros, since its inputs come from a ReLU."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """An inflated Inception block: four parallel branches, concatenated over channels."""

    def __init__(self, channels_in: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = channels
        self.b0 = Unit3D(channels_in, b0, (1, 1, 1))
        self.b1a = Unit3D(channels_in, b1a, (1, 1, 1))
        self.b1b = Unit3D(b1a, b1b, (3, 3, 3))
        self.b2a = Unit3D(channels_in, b2a, (1, 1, 1))
        self.b2b = Unit3D(b2a, b2b, (3, 3, 3))
        self.b3a = MaxPool3dSame((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3D(channels_in, b3b, (1, 1, 1))
        self.channels_out = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))]
        return torch.cat(branches, dim=1)


class Logits(nn.Module):
    """The classifier: one 1x1x1 convolution with a bias."""

    def __init__(self, channels_in: int, num_classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)  # type: ignore[no-any-return]


class I3D(nn.Module):
    """I3D for clips of 9 frames or more.

    `width` multiplies every layer's channels; 1.0 is the published network. `forward` takes normalized clips,
    float (N, channels, T, H, W), and returns an `Output` with S = max(ceil(T / 8) - 1, 1) steps.
    """

    def __init__(self, num_classes: int, channels: int = 3, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        self.num_classes, self.channels, self.width = num_classes, channels, width
        stem, stem_3x3 = scaled(STEM_CHANNELS, width), scaled(192, width)
        self.Conv3d_1a_7x7 = Unit3D(channels, stem, (7, 7, 7), (2, 2, 2))
        self.MaxPool3d_2a_3x3 = MaxPool3dSame((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(stem, stem, (1, 1, 1))
        self.Conv3d_2c_3x3 = Unit3D(stem, stem_3x3, (3, 3, 3))
        self.MaxPool3d_3a_3x3 = MaxPool3dSame((1, 3, 3), (1, 2, 2))
        channels_in = stem_3x3
        for name, published in MIXED.items():
            block = Mixed(channels_in, tuple(scaled(c, width) for c in published))
            self.add_module(name, block)
            channels_in = block.channels_out
        self.MaxPool3d_4a_3x3 = MaxPool3dSame((3, 3, 3), (2, 2, 2))
        self.MaxPool3d_5a_2x2 = MaxPool3dSame((2, 2, 2), (2, 2, 2))
        self.dropout = nn.Dropout(dropout)
        self.logits = Logits(channels_in, num_classes)

    def forward(self, x: Tensor) -> Output:
        x = self.Conv3d_1a_7x7(x)  # (N, 3, T, H, W) -> (N, 64, T/2, H/2, W/2)
        x = self.MaxPool3d_2a_3x3(x)
        x = self.Conv3d_2b_1x1(x)
        x = self.Conv3d_2c_3x3(x)
        x = self.MaxPool3d_3a_3x3(x)
        x = self.mixed(x, "3b", "3c")
        x = self.MaxPool3d_4a_3x3(x)
        x = self.mixed(x, "4b", "4c", "4d", "4e", "4f")
        x = self.MaxPool3d_5a_2x2(x)
        x = self.mixed(x, "5b", "5c")  # (N, 1024, T/8, H/32, W/32)
        features = x.mean(dim=(3, 4))  # (N, 1024, T/8): the original's 7x7 average at 224 x 224
        steps = average_neighbors(features)
        step_logits = self.logits(self.dropout(steps)[..., None, None])  # (N, C, S, 1, 1)
        return Output(step_logits[..., 0, 0].transpose(1, 2), features)

    def mixed(self, x: Tensor, *blocks: str) -> Tensor:
        """Run some Mixed blocks, one after another."""
        for block in blocks:
            x = self.get_submodule(f"Mixed_{block}")(x)
        return x


def average_neighbors(features: Tensor) -> Tensor:
    """Average neighbors in time: (N, F, T/8) -> (N, F, S). A single position is returned unchanged."""
    return (features[..., 1:] + features[..., :-1]) / 2 if features.shape[-1] > 1 else features


def normalize(frames_nthwc: Tensor, preset: Preset) -> Tensor:
    """Convert uint8 RGB (N, T, H, W, 3) to the preset's color order and range: float32 (N, 3, T, H, W), strided.

    `asl_triton.video.preprocessing.normalize` does the same in NumPy. Exported networks have it in their first layer.
    """
    low, high = preset.value_range
    ordered = frames_nthwc.flip(-1) if preset.colour == "BGR" else frames_nthwc
    return (ordered.float() / 255 * (high - low) + low).permute(0, 4, 1, 2, 3)


def pool_steps(net: I3D, step_logits: Tensor, features: Tensor, preset: Preset) -> Tensor:
    """Compute the logits (N, C) of whole clips from a network's step logits (N, S, C) and features (N, F, T/8)."""
    if preset.step_pooling == "max":
        return step_logits.amax(dim=1)
    if preset.step_pooling == "max-interpolated":
        return F.interpolate(step_logits.transpose(1, 2), preset.window_frames, mode="linear").amax(dim=2)
    if preset.step_pooling == "mean":
        return step_logits.mean(dim=1)
    return net.logits(net.dropout(features.mean(dim=2))[..., None, None, None]).flatten(1)  # type: ignore[no-any-return]
