"""Served TorchScript files: bounded under any backend, and without paths of this machine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from asl_triton.presets import PRESETS
from asl_triton.transport.error_mapping import shorten_message
from asl_triton_export.formats.script_file import CPU_FRAMES, BoundedNetwork, save_script
from asl_triton_export.formats.torchscript import ServedI3D
from tests.exports import find_local_paths
from tests.networks import build_small_network

WLASL = PRESETS["wlasl"]


class Counting(nn.Module):
    """Returns the mean color, and records the number of clips in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = [0]

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.sizes.append(frames.size(0))
        means = frames.float().mean(dim=(2, 3))
        return means.amax(dim=1), means, means.mean(dim=1)


class Broken(nn.Module):
    """Multiplies matrices of incompatible shapes."""

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wrong = torch.ones(2, 3) @ torch.ones(2, 3)
        return wrong, wrong, wrong


def make_clips(count: int, num_frames: int) -> Tensor:
    """Return random clips (N, T, 8, 8, 3)."""
    generator = torch.Generator().manual_seed(count * num_frames)
    return torch.randint(0, 256, (count, num_frames, 8, 8, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("count", "num_frames", "sizes"),
    [(1, 64, [1]), (8, 64, [1] * 8), (8, 300, [1] * 8), (5, 32, [2, 2, 1]), (8, 9, [7, 1]), (7, 9, [7])],
)
def test_batch_is_split_to_limit_the_frames_per_forward(count: int, num_frames: int, sizes: list[int]) -> None:
    assert all(size == 1 or size * num_frames <= CPU_FRAMES for size in sizes)
    network = Counting()
    bounded = torch.jit.script(BoundedNetwork(network, WLASL))
    frames = make_clips(count, num_frames)
    answers = bounded(frames)
    assert bounded.network.sizes[1:] == sizes
    for answer, whole in zip(answers, network(frames), strict=True):
        assert torch.equal(answer, whole)


@pytest.mark.parametrize("normalized", [False, True])
def test_batch_gives_the_same_answers_as_single_clips(normalized: bool) -> None:
    served = ServedI3D(build_small_network(), WLASL, torch.float32, normalized_input=normalized)
    bounded = torch.jit.script(BoundedNetwork(served, WLASL, normalized_input=normalized).eval())
    shape = (3, 3, 40, 64, 64) if normalized else (3, 40, 64, 64, 3)
    frames = torch.rand(shape) if normalized else torch.randint(0, 256, shape, dtype=torch.uint8)
    with torch.inference_mode():
        together = bounded(frames)
        apart = [torch.cat(outputs) for outputs in zip(*(served(clip[None]) for clip in frames), strict=True)]
    for answer, expected in zip(together, apart, strict=True):
        assert torch.equal(answer, expected)


@pytest.mark.parametrize("num_frames", [0, 8, 301, 5000])
def test_other_lengths_are_refused_in_one_sentence(num_frames: int, tmp_path: Path) -> None:
    save_script(BoundedNetwork(Counting(), WLASL), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    with pytest.raises(torch.jit.Error) as refused:
        loaded(make_clips(1, num_frames))
    sentence = f"FRAMES__0 has {num_frames} frames: this model takes 9 to 300"
    assert str(refused.value).rstrip().splitlines()[-1] == f"builtins.ValueError: {sentence}"
    # As Triton's PyTorch backend passes it on.
    assert shorten_message(f"PyTorch execute failure: {refused.value}") == sentence


def test_empty_clip_is_refused_whatever_the_preset_allows() -> None:
    bounded = torch.jit.script(BoundedNetwork(Counting(), replace(WLASL, min_frames=0)))
    with pytest.raises(torch.jit.Error, match="has 0 frames: this model takes 1 to 300"):
        bounded(make_clips(1, 0))


def test_file_contains_no_path_of_this_machine(tmp_path: Path) -> None:
    network = BoundedNetwork(ServedI3D(build_small_network(), WLASL, torch.float32), WLASL).eval()
    torch.jit.script(network).save(tmp_path / "with_debug_information.pt")
    assert find_local_paths(tmp_path / "with_debug_information.pt")
    save_script(network, tmp_path / "model.pt")
    assert find_local_paths(tmp_path / "model.pt") == []


def test_error_still_shows_the_line_that_failed(tmp_path: Path) -> None:
    save_script(BoundedNetwork(Broken(), WLASL), tmp_path / "model.pt")
    with pytest.raises(RuntimeError) as failed:
        torch.jit.load(tmp_path / "model.pt")(make_clips(1, 9))
    assert "torch.matmul(" in str(failed.value) and "<--- HERE" in str(failed.value)
    message = shorten_message(f"PyTorch execute failure: {failed.value}")
    assert message.startswith("mat1 and mat2 shapes cannot be multiplied")
