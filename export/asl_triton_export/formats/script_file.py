"""Writes TorchScript files for serving: they check clip lengths, bound their memory and contain no local paths."""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from asl_triton.presets import Preset

INPUT_NAME = "FRAMES__0"  # `models.served` has it too, but importing that needs more than PyTorch

# The most frames in one forward, unless a single clip has more, so that they fit a CPU's caches and a GPU's memory.
CPU_FRAMES, GPU_FRAMES = 64, 512
# Members that name the source file of each line of code, on the machine that scripted it.
DEBUG_SUFFIX = ".debug_pkl"


class BoundedNetwork(nn.Module):
    """A network that rejects clips outside its preset's range of lengths and computes large batches in parts.

    `model.pt` enforces both limits itself, so they hold for Triton's PyTorch backend, our Python backend and any other
    caller. Clips are independent of each other, so computing a batch in parts does not change the results.
    """

    input_name: Final[str] = INPUT_NAME
    cpu_frames: Final[int] = CPU_FRAMES
    gpu_frames: Final[int] = GPU_FRAMES
    min_frames: Final[int]
    max_frames: Final[int]
    time_axis: Final[int]

    def __init__(self, network: nn.Module, preset: Preset, *, normalized_input: bool = False) -> None:
        super().__init__()
        self.network = network
        self.min_frames, self.max_frames = max(preset.min_frames, 1), preset.max_frames
        self.time_axis = 2 if normalized_input else 1  # (N, C, T, H, W), or (N, T, H, W, C)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_frames = frames.size(self.time_axis)
        if num_frames < self.min_frames or num_frames > self.max_frames:
            # TorchScript keeps the class and the message; Triton's PyTorch backend ends its own message with them.
            raise ValueError(
                f"{self.input_name} has {num_frames} frames: this model takes {self.min_frames} to {self.max_frames}"
            )
        num_clips = max((self.gpu_frames if frames.is_cuda else self.cpu_frames) // num_frames, 1)
        if frames.size(0) <= num_clips:
            logits, step_logits, features = self.network(frames)
            return logits, step_logits, features
        all_logits: list[Tensor] = []
        all_step_logits: list[Tensor] = []
        all_features: list[Tensor] = []
        for part in frames.split(num_clips):
            logits, step_logits, features = self.network(part)
            all_logits.append(logits)
            all_step_logits.append(step_logits)
            all_features.append(features)
        return torch.cat(all_logits), torch.cat(all_step_logits), torch.cat(all_features)


def save_script(network: nn.Module, path: Path) -> None:
    """Write a network as a TorchScript file without debug information, which would name files on this machine.

    Errors still quote the code that failed, because the file contains it.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what Triton's backend loads
        torch.jit.save(torch.jit.script(network), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            if not member.filename.endswith(DEBUG_SUFFIX):
                target.writestr(zipfile.ZipInfo(member.filename, member.date_time), source.read(member))
