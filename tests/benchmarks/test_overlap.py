"""Tests that the ways compared by `tests.benchmarks.overlap` compute what they claim to."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from asl_triton.video.preprocessing import Crop
from asl_triton.video.windows import cut_windows_by_shot
from tests.benchmarks import overlap
from tests.benchmarks.film import FPS
from tests.benchmarks.overlap import LiveNetwork, SplitNetwork, join_windows, run_request
from tests.networks import build_small_network

BEFORE, AFTER = 4, 5  # positions of a window that see zeros instead of the frames before and after it


@pytest.fixture(scope="module")
def network() -> SplitNetwork:
    return SplitNetwork(build_small_network(), "fp32")


@pytest.fixture(scope="module")
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (96, 224, 224, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("length", [9, 63, 64])
def test_two_parts_compute_what_the_served_network_does(network: SplitNetwork, frames: Tensor, length: int) -> None:
    clip = frames[None, :length]
    assert torch.allclose(network.compute_steps(network.compute_shared(clip)), network.served(clip)[1], atol=1e-4)


def test_shared_positions_match_a_separate_window_except_at_its_edges(network: SplitNetwork, frames: Tensor) -> None:
    shared = network.compute_shared(frames[None])[:, :, 8:40]
    apart = network.compute_shared(frames[None, 16:80])
    assert torch.allclose(shared[:, :, BEFORE:-AFTER], apart[:, :, BEFORE:-AFTER], atol=1e-3)
    assert not torch.allclose(shared[:, :, BEFORE - 1], apart[:, :, BEFORE - 1], atol=1e-3)
    assert not torch.allclose(shared[:, :, -AFTER], apart[:, :, -AFTER], atol=1e-3)


def test_live_network_sees_past_frames_and_zeros_after_the_window(network: SplitNetwork, frames: Tensor) -> None:
    live = LiveNetwork(network, frames[None, :64])
    for start in (64, 72, 80, 88):
        steps = live.run(frames[None, start : start + 8])
        shared = network.compute_shared(frames[None, : start + 8])[:, :, -32:]
        assert torch.allclose(live.shared, shared, atol=1e-3)
        assert torch.allclose(steps, network.compute_steps(shared), atol=1e-3)


@pytest.mark.parametrize(("count", "lengths"), [(50, [1]), (96, [2]), (101, [2, 1]), (96 + 64, [2, 2])])
def test_windows_of_a_shot_are_joined_into_requests(
    network: SplitNetwork, frames: Tensor, count: int, lengths: list[int]
) -> None:
    shot = [Crop(frames[n % 96].numpy(), n / FPS) for n in range(count)]
    windows = list(cut_windows_by_shot(shot, overlap.with_window(overlap.PRESET), FPS))
    requests = list(join_windows(windows, longest=96))
    assert [len(request) for request in requests] == lengths
    assert [window for request in requests for window in request] == windows
    answers = [answer for request in requests for answer in run_request(network, request)]
    assert len(answers) == len(windows)
