"""Classifier rows for new glosses, computed from their clips alone."""

import pytest
import torch
from torch import Tensor

from asl_triton.presets import PRESETS
from asl_triton_export.finetune.imprinting import compute_usual_features, imprint_rows
from asl_triton_export.i3d import I3D, Output, pool_steps
from tests.networks import build_small_network

KNOWN = 6
NEW = (6, 7)


def draw_features(usual: Tensor, shift: Tensor, count: int) -> Tensor:
    """Draw segments of one kind: usual features plus a shift and noise, (count, F, T/8)."""
    noise = 0.1 * usual.mean() * torch.randn(count, len(usual), 8)
    return (usual[:, None] + shift[:, None] + noise).clamp_min(0)


def imprint(net: I3D, preset_name: str) -> dict[int, Tensor]:
    """Imprint two glosses on a network that knows six; returns fresh segments of each."""
    torch.manual_seed(3)
    usual = compute_usual_features(net).detach()
    shifts = {class_id: usual.mean() * torch.randn(len(usual)) for class_id in NEW}
    clips = [(draw_features(usual, shifts[class_id], 4), class_id) for class_id in NEW for _ in range(20)]
    features, class_ids = zip(*clips, strict=True)
    imprint_rows(net, features, class_ids, range(KNOWN), PRESETS[preset_name])
    return {class_id: draw_features(usual, shifts[class_id], 100) for class_id in NEW}


def compute_logits(net: I3D, features: Tensor, preset_name: str) -> Tensor:
    steps = (features[..., 1:] + features[..., :-1]) / 2
    step_logits = net.logits(steps[..., None, None])[..., 0, 0].transpose(1, 2)
    return pool_steps(net, Output(step_logits, features).step_logits, features, PRESETS[preset_name])


@pytest.mark.parametrize("preset_name", ["wlasl", "asl-citizen", "bsl1k", "asl-inference"])
def test_new_gloss_is_recognized_and_known_rows_stay(preset_name: str) -> None:
    net = build_small_network(KNOWN + len(NEW))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fresh = imprint(net, preset_name)
    for name, tensor in net.state_dict().items():
        kept = tensor[:KNOWN] if name.startswith("logits.") else tensor
        assert torch.equal(kept, before[name][:KNOWN] if name.startswith("logits.") else before[name])
    for class_id, features in fresh.items():
        right = compute_logits(net, features, preset_name).argmax(dim=1) == class_id
        assert right.float().mean() >= 0.6  # 0.75 on the segments that it was imprinted from


def test_new_row_scores_usual_features_like_the_known_ones() -> None:
    net = build_small_network(KNOWN + len(NEW))
    imprint(net, "wlasl")
    usual = compute_usual_features(net)
    logits = net.logits(usual[None, :, None, None, None]).flatten().detach()
    assert logits[list(NEW)] == pytest.approx(float(logits[:KNOWN].mean()), abs=1e-3)


def test_usual_features_are_the_mean_output_of_the_last_block() -> None:
    """Compared with draws from the statistics of its batch normalization."""
    net = build_small_network(3)
    torch.manual_seed(0)
    drawn = []
    for unit in ("b0", "b1b", "b2b", "b3b"):
        norm = net.get_submodule(f"Mixed_5c.{unit}.bn")
        assert isinstance(norm, torch.nn.BatchNorm3d)
        assert norm.running_mean is not None and norm.running_var is not None
        drawn_inputs = torch.randn(20_000, len(norm.running_mean)) * norm.running_var.sqrt() + norm.running_mean
        drawn.append(torch.relu(norm(drawn_inputs[..., None, None, None])).flatten(1).mean(dim=0))
    assert torch.allclose(compute_usual_features(net), torch.cat(drawn), atol=0.03)
