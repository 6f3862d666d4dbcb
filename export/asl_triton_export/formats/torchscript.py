"""The format `torchscript`: I3D rebuilt for speed, in `model.pt`. It computes the same function as `i3d.I3D`.

It differs from the trained network as follows, without changing the results beyond rounding:

- BatchNorm is folded into the convolutions. The preset's value range and color order (`i3d.normalize`) are folded into
  the first one, so the input is uint8 RGB. That convolution's 'same' padding is the pixel that normalizes to zero.
- The first convolution has a fourth input channel of zeros, because matrix units work in multiples of four.
- The three 1x1x1 convolutions of a Mixed block that read the same input are merged into one.
- After a ReLU, padding by zeros equals max pooling's own padding by minus infinity, so only the input is padded.
- Max pooling uses element-wise maxima, axis by axis. PyTorch's own also writes an int64 index for each element.
- Memory is channels-last. The mean over space, the classifier and the pooling over time stay in float32.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asl_triton.presets import Preset
from asl_triton.results import Logits
from asl_triton.transport.base import Array
from asl_triton_export.formats import Forward
from asl_triton_export.formats.script_file import BoundedNetwork, save_script
from asl_triton_export.i3d import I3D, MIXED, Unit3D

if TYPE_CHECKING:  # imports tritonclient, which `make bench-gpu` does not install
    from asl_triton_export.triton_config import ServedNetwork

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def save_torchscript(net: I3D, network: "ServedNetwork", folder: Path) -> None:
    """Write `model.pt` into a version folder."""
    normalized = network.input_type == "fp32"
    served = ServedI3D(net, network.preset, DTYPES[network.precision], normalized_input=normalized)
    bounded = BoundedNetwork(served, network.preset, normalized_input=normalized)
    save_script(bounded.eval(), folder / "model.pt")


def open_torchscript(folder: Path, precision: str) -> Forward:
    """Load `model.pt` from a version folder. `precision` is unused, because the weights already have theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(folder / "model.pt")

    def forward(frames: Array) -> Logits:
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            logits: Logits = module(torch.from_numpy(frames))[0][0].numpy()
        return logits

    return forward


def max_of_three(x: Tensor, axis: int) -> Tensor:
    """Max-pool non-negative (N, C, T, H, W) along one axis with kernel 3, stride 1 and 'same' padding."""
    length = x.size(axis)
    out = x.clone()
    if length > 1:
        head, tail = out.narrow(axis, 0, length - 1), out.narrow(axis, 1, length - 1)
        torch.maximum(head, x.narrow(axis, 1, length - 1), out=head)
        torch.maximum(tail, x.narrow(axis, 0, length - 1), out=tail)
    return out


def halve_by_three(x: Tensor, axis: int) -> Tensor:
    """Max-pool along one axis with kernel 3, stride 2 and 'same' padding, whose side depends on the length's parity."""
    x = x.transpose(axis, 4)
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = odd.size(4)
    if even.size(4) == pairs:  # even length, padded after: (0 1 2) (2 3 4) ... (n-2 n-1 -)
        out = torch.maximum(even, odd)
        head = out.narrow(4, 0, pairs - 1)
        torch.maximum(head, even.narrow(4, 1, pairs - 1), out=head)
    else:  # odd length, padded on both sides: (- 0 1) (1 2 3) ... (n-2 n-1 -)
        out = even.clone()
        head, tail = out.narrow(4, 0, pairs), out.narrow(4, 1, pairs)
        torch.maximum(head, odd, out=head)
        torch.maximum(tail, odd, out=tail)
    return out.transpose(axis, 4)


class Conv(nn.Module):
    """Convolution with stride 1, an odd kernel, a bias and the operator's own 'same' padding, then ReLU."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.padding = [k // 2 for k in weight.shape[2:]]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.weight, self.bias, padding=self.padding).relu_()


class Mixed(nn.Module):
    """A Mixed block whose three entry convolutions are merged into one."""

    def __init__(self, entry: Conv, b1b: Conv, b2b: Conv, b3b: Conv) -> None:
        super().__init__()
        self.entry, self.b1b, self.b2b, self.b3b = entry, b1b, b2b, b3b
        b1, b2 = b1b.weight.shape[1], b2b.weight.shape[1]
        self.split: list[int] = [entry.weight.shape[0] - b1 - b2, b1, b2]

    def forward(self, x: Tensor) -> Tensor:
        b0, b1, b2 = self.entry(x).split(self.split, dim=1)
        pooled = max_of_three(max_of_three(max_of_three(x, 4), 3), 2)
        return torch.cat([b0, self.b1b(b1), self.b2b(b2), self.b3b(pooled)], dim=1)


class ServedI3D(nn.Module):
    """I3D from pixels to logits: `forward(frames) -> (logits, step_logits, features)`, all float32.

    `frames` is uint8 RGB (N, T, 224, 224, 3); with `normalized_input`, float32 (N, 3, T, 224, 224) in the preset's
    color order and range. `logits` (N, C), `step_logits` (N, S, C) with S = max(ceil(T / 8) - 1, 1), `features`
    (N, F): the mean of the last block's activations over time and space.
    """

    stem_kernel: Final[int] = 7
    stem_channels: Final[int] = 4  # RGB and one of zeros
    pixel_scale: Final[float] = 128.0  # divides the pixels; a power of two is exact, and this one suits float16
    normalized_input: Final[bool]
    step_pooling: Final[str]
    interpolated_steps: Final[int]
    pixel_offset: Final[float]

    def __init__(self, net: I3D, preset: Preset, dtype: torch.dtype, *, normalized_input: bool = False) -> None:
        super().__init__()
        self.normalized_input = normalized_input
        self.step_pooling = preset.step_pooling
        self.interpolated_steps = preset.window_frames
        low, high = preset.value_range
        self.pixel_offset = -low * 255.0 / (high - low)  # the pixel that normalizes to zero, as padding does

        weight, bias = fold_batch_norm(net.Conv3d_1a_7x7)
        if not normalized_input:  # i3d.normalize, folded into the weights
            weight = weight * ((high - low) / 255.0 * self.pixel_scale)
            if preset.colour == "BGR":
                weight = weight.flip(1)
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, self.stem_channels - weight.shape[1]))
        self.stem = fold_conv(weight, bias, dtype)
        self.conv_2b = fold_conv(*fold_batch_norm(net.Conv3d_2b_1x1), dtype)
        self.conv_2c = fold_conv(*fold_batch_norm(net.Conv3d_2c_3x3), dtype)
        blocks = {name: fold_mixed(net.get_submodule(name), dtype) for name in MIXED}
        self.mixed_3 = nn.Sequential(*(block for name, block in blocks.items() if name.startswith("Mixed_3")))
        self.mixed_4 = nn.Sequential(*(block for name, block in blocks.items() if name.startswith("Mixed_4")))
        self.mixed_5 = nn.Sequential(*(block for name, block in blocks.items() if name.startswith("Mixed_5")))
        state = net.logits.conv3d.state_dict()
        self.classifier = nn.Linear(net.logits.conv3d.in_channels, net.num_classes)
        self.classifier.load_state_dict({"weight": state["weight"].flatten(1), "bias": state["bias"]})
        self.requires_grad_(False)

    def pad_clip(self, frames: Tensor) -> Tensor:
        """Convert frames to the stem's input: channels-last (N, 4, T', H', W') with the stem's 'same' padding."""
        if self.normalized_input:
            x = frames.permute(0, 2, 3, 4, 1).to(self.stem.weight.dtype)  # (N, C, T, H, W) -> (N, T, H, W, C)
        else:
            x = (frames.to(self.stem.weight.dtype) - self.pixel_offset) / self.pixel_scale
        pads = [0, self.stem_channels - x.size(4)]
        for axis in (3, 2, 1):
            total = self.stem_kernel - 2 + x.size(axis) % 2
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads).permute(0, 4, 1, 2, 3)  # (N, T, H, W, C) -> (N, C, T, H, W)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.conv3d(self.pad_clip(frames), self.stem.weight, self.stem.bias, stride=2)
        x = halve_by_three(halve_by_three(x, 3), 4).relu_()  # the maximum of a ReLU is the ReLU of the maximum
        x = self.conv_2c(self.conv_2b(x))
        x = halve_by_three(halve_by_three(x, 3), 4)
        x = self.mixed_3(x)
        odd = [x.size(2) % 2, x.size(3) % 2, x.size(4) % 2]  # odd axes are padded on both sides, even ones at the end
        x = F.max_pool3d(x, 3, 2, odd, 1, True)
        x = self.mixed_4(x)
        x = F.max_pool3d(x, 2, 2, 0, 1, True)
        x = self.mixed_5(x)
        positions = x.float().mean(dim=(3, 4)).transpose(1, 2)  # (N, F, T/8, 7, 7) -> (N, T/8, F)
        steps = positions
        if positions.size(1) > 1:
            steps = (positions[:, 1:] + positions[:, :-1]) / 2
        step_logits = self.classifier(steps)
        features = positions.mean(dim=1)
        if self.step_pooling == "max":
            logits = step_logits.amax(dim=1)
        elif self.step_pooling == "max-interpolated":
            points = F.interpolate(step_logits.transpose(1, 2), [self.interpolated_steps], mode="linear")
            logits = points.amax(dim=2)
        elif self.step_pooling == "mean":
            logits = step_logits.mean(dim=1)
        else:
            logits = self.classifier(features)
        return logits, step_logits, features


def fold_batch_norm(unit: nn.Module) -> tuple[Tensor, Tensor]:
    """Fold a unit's convolution and BatchNorm into one convolution; return its weight and bias in float64."""
    assert isinstance(unit, Unit3D)
    assert unit.bn.running_mean is not None and unit.bn.running_var is not None
    scale = unit.bn.weight.double() / torch.sqrt(unit.bn.running_var.double() + unit.bn.eps)
    weight = unit.conv3d.weight.double() * scale[:, None, None, None, None]
    bias = unit.bn.bias.double() - unit.bn.running_mean.double() * scale
    return weight.detach(), bias.detach()


def fold_conv(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Conv:
    """Build a served convolution with this weight and bias, channels-last."""
    return Conv(weight.to(dtype).contiguous(memory_format=torch.channels_last_3d), bias.to(dtype))


def fold_mixed(block: nn.Module, dtype: torch.dtype) -> Mixed:
    """Build the served form of a trained Mixed block."""
    folded = {name: fold_batch_norm(block.get_submodule(name)) for name in ("b0", "b1a", "b2a", "b1b", "b2b", "b3b")}
    entry = [folded[name] for name in ("b0", "b1a", "b2a")]
    return Mixed(
        fold_conv(torch.cat([weight for weight, _ in entry]), torch.cat([bias for _, bias in entry]), dtype),
        *(fold_conv(*folded[name], dtype) for name in ("b1b", "b2b", "b3b")),
    )
