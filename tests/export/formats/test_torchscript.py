"""The served network compared with the trained one, on small networks and for every parity of length and size."""

import numpy as np
import pytest
import torch

from asl_triton.presets import PRESETS, Preset
from asl_triton_export.formats.torchscript import ServedI3D, halve_by_three, max_of_three
from asl_triton_export.i3d import I3D, normalize, pool_steps, same_padding
from tests.networks import build_small_network


@pytest.fixture(scope="module")
def net() -> I3D:
    return build_small_network()


@pytest.fixture(scope="module")
def scripted(net: I3D) -> torch.nn.Module:
    return torch.jit.script(ServedI3D(net, PRESETS["wlasl"], torch.float32).eval())


def make_clip(num_frames: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Return random frames: uint8 RGB (T, H, W, 3)."""
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def measure_difference(
    net: I3D, served: torch.nn.Module, preset: Preset, frames: torch.Tensor, normalized: bool = False
) -> float:
    """Return the largest difference of served logits, steps and features from the trained network's."""
    with torch.inference_mode():
        x = normalize(frames[None], preset)
        trained = net(x)
        expected = pool_steps(net, trained.step_logits, trained.features, preset)
        logits, step_logits, features = served(x if normalized else frames[None])
    assert step_logits.shape == trained.step_logits.shape
    pairs = ((logits, expected), (step_logits, trained.step_logits), (features, trained.features.mean(dim=2)))
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


@pytest.mark.parametrize("num_frames", [*range(9, 42), 63, 64, 65, 70, 75])
def test_every_length_is_exact(net: I3D, scripted: torch.nn.Module, num_frames: int) -> None:
    assert measure_difference(net, scripted, PRESETS["wlasl"], make_clip(num_frames)) < 1e-4


@pytest.mark.parametrize("size", [(63, 64), (65, 71), (70, 75), (112, 112), (97, 33)])
def test_every_size_is_exact(net: I3D, size: tuple[int, int]) -> None:
    assert (
        measure_difference(net, ServedI3D(net, PRESETS["wlasl"], torch.float32), PRESETS["wlasl"], make_clip(17, *size))
        < 1e-4
    )


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_every_preset_is_exact_with_either_input(net: I3D, preset: Preset, normalized: bool) -> None:
    served = torch.jit.script(ServedI3D(net, preset, torch.float32, normalized_input=normalized).eval())
    assert measure_difference(net, served, preset, make_clip(33), normalized) < 1e-4


@pytest.mark.parametrize("num_frames", [9, 16, 17, 64])
def test_step_count_is_one_less_than_eighths_but_at_least_one(net: I3D, num_frames: int) -> None:
    served = ServedI3D(net, PRESETS["wlasl"], torch.float32)
    with torch.inference_mode():
        _, step_logits, features = served(make_clip(num_frames)[None])
    assert step_logits.shape == (1, max(-(-num_frames // 8) - 1, 1), net.num_classes)
    assert features.shape == (1, 64)


def test_clips_of_a_batch_do_not_mix(net: I3D) -> None:
    served = ServedI3D(net, PRESETS["wlasl"], torch.float32)
    first, second = make_clip(16), make_clip(16).flip(0)
    with torch.inference_mode():
        together = served(torch.stack([first, second]))[0]
        apart = torch.cat([served(first[None])[0], served(second[None])[0]])
    assert torch.allclose(together, apart, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_answers_are_float32_for_half_precision_weights(net: I3D, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        answers = ServedI3D(net, PRESETS["wlasl"], dtype)(make_clip(16)[None])
    assert {answer.dtype for answer in answers} == {torch.float32}
    assert all(bool(torch.isfinite(answer).all()) for answer in answers)


def test_saved_network_keeps_its_memory_format(net: I3D, tmp_path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.script(ServedI3D(net, PRESETS["wlasl"], torch.float32).eval()).save(path)
    loaded = torch.jit.load(path)
    assert loaded.conv_2c.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert measure_difference(net, loaded, PRESETS["wlasl"], make_clip(20)) < 1e-4


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 14, 15])
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_pooling_by_maxima_matches_max_pooling(length: int, axis: int) -> None:
    shape = [2, 3, 4, 5, 6]
    shape[axis] = length
    x = torch.rand(shape)
    kernel, stride = [1, 1, 1], [1, 1, 1]
    kernel[axis - 2] = 3
    pads = [0] * 6

    pads[2 * (4 - axis) : 2 * (4 - axis) + 2] = same_padding(length, 3, 1)
    same = torch.nn.functional.max_pool3d(torch.nn.functional.pad(x, pads), kernel, stride)
    assert torch.equal(max_of_three(x, axis), same)

    stride[axis - 2] = 2
    pads[2 * (4 - axis) : 2 * (4 - axis) + 2] = same_padding(length, 3, 2)
    halved = torch.nn.functional.max_pool3d(torch.nn.functional.pad(x, pads), kernel, stride)
    assert torch.equal(halve_by_three(x, axis), halved)


@pytest.mark.parametrize(("length", "kernel", "stride", "padding"), [
    (224, 7, 2, (2, 3)), (225, 7, 2, (3, 3)), (112, 3, 2, (0, 1)),
    (7, 3, 1, (1, 1)), (15, 2, 2, (0, 1)), (14, 2, 2, (0, 0)),
])  # fmt: skip
def test_same_padding_matches_tensorflow(length: int, kernel: int, stride: int, padding: tuple[int, int]) -> None:
    assert same_padding(length, kernel, stride) == padding


def test_pixels_are_exact_in_half_precision() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float16, torch.bfloat16):
        assert np.array_equal(((pixels.to(dtype) - 127.5) / 128).double(), (pixels.double() - 127.5) / 128)
