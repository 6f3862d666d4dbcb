"""The parts of fine-tuning: loss, rate, draws, and who gets which clip."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from asl_triton.evaluation.dataset import LabeledClip
from asl_triton.presets import PRESETS
from asl_triton_export.finetune.data import hold_out
from asl_triton_export.finetune.module import compute_loss, forward_clips, schedule_learning_rate
from asl_triton_export.finetune.sampling import EpochSampler, SegmentSampler
from asl_triton_export.i3d import Output
from tests.live.conftest import write_clip
from tests.networks import small_network


def test_loss_is_half_localization_and_half_classification() -> None:
    """Against train_i3d.py, written out: F.upsample to the frames, labels a frame, the greatest over time."""
    net = small_network(5)
    torch.manual_seed(1)
    step_logits, class_ids = torch.randn(2, 7, 5), torch.tensor([3, 0])
    frame_logits = F.interpolate(step_logits.permute(0, 2, 1), size=64, mode="linear", align_corners=False)
    labels = torch.zeros(2, 5, 64)
    labels[0, 3], labels[1, 0] = 1, 1
    localization = F.binary_cross_entropy_with_logits(frame_logits, labels)
    classification = F.binary_cross_entropy_with_logits(frame_logits.max(dim=2)[0], labels.max(dim=2)[0])
    ours = compute_loss(net, Output(step_logits, torch.randn(2, 64, 8)), class_ids, PRESETS["wlasl"])
    assert torch.allclose(ours, 0.5 * localization + 0.5 * classification)


def test_checkpoint_scored_by_softmax_is_trained_by_cross_entropy() -> None:
    net = small_network(5)
    features, class_ids = torch.randn(2, 64, 8), torch.tensor([3, 0])
    output = forward_clips(net, features, PRESETS["bsl1k"])
    served = net.logits(features.mean(dim=2)[..., None, None, None]).flatten(1)
    assert torch.allclose(compute_loss(net, output, class_ids, PRESETS["bsl1k"]), F.cross_entropy(served, class_ids))


def test_features_answer_as_the_frames_that_they_are_of() -> None:
    net, preset = small_network(5), PRESETS["wlasl"]
    frames = torch.randint(0, 256, (1, 17, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        whole = forward_clips(net, frames, preset)
        again = forward_clips(net, whole.features, preset)
    assert torch.allclose(whole.step_logits, again.step_logits, atol=1e-5)


def test_rate_falls_as_pytorchs_scheduler_lets_it() -> None:
    random = np.random.default_rng(0)
    losses = [float(loss) for loss in 1 / (1 + 0.05 * np.arange(60)) + random.normal(0, 0.1, 60)]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", patience=5, factor=0.3)
    for count in range(1, len(losses) + 1):
        scheduler.step(losses[count - 1])
        assert schedule_learning_rate(losses[:count], 0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert schedule_learning_rate(losses, 0.1) < 0.1


@pytest.mark.parametrize("num_frames", [12, 20, 41])
def test_segment_is_consecutive_frames_cropped_alike(tmp_path: Path, num_frames: int) -> None:
    clip = LabeledClip(write_clip(tmp_path / "clip.mp4", num_frames), "clip.mp4", "home", 0)
    sampler = SegmentSampler(PRESETS["wlasl"], 20, flip=True, seed=3)
    drawn = sampler.draw(clip, 0, range(6))
    assert all(segment.shape == (20, 224, 224, 3) for segment in drawn)
    assert len({segment.tobytes() for segment in drawn}) > 1
    assert np.array_equal(sampler.draw(clip, 0, [4])[0], drawn[4])
    for segment in drawn if num_frames < 20 else ():
        rest = segment[num_frames:]
        assert np.array_equal(rest, np.broadcast_to(segment[0], rest.shape)) or np.array_equal(
            rest, np.broadcast_to(segment[num_frames - 1], rest.shape)
        )


def test_every_segment_of_a_clip_is_as_likely(tmp_path: Path) -> None:
    clip = LabeledClip(write_clip(tmp_path / "clip.mp4", 12), "clip.mp4", "home", 0)
    sampler = SegmentSampler(PRESETS["asl-inference"], 10, flip=False, seed=0)  # no room to crop: three segments in all
    drawn = sampler.draw(clip, 0, range(300))
    counts = np.unique([segment.tobytes() for segment in drawn], return_counts=True)[1]
    assert len(counts) == 3
    assert counts.min() > 70


@pytest.mark.parametrize(("count", "world"), [(7, 1), (7, 2), (8, 3), (1, 4)])
def test_clips_are_dealt_among_processes_each_as_many(count: int, world: int) -> None:
    hands = [list(EpochSampler(count, rank, world, seed=0)) for rank in range(world)]
    assert len({len(hand) for hand in hands}) == 1
    assert {index for hand in hands for index, _ in hand} == set(range(count))
    judged = [turn for rank in range(world) for turn in EpochSampler(count, rank, world)]
    assert sorted(index for index, turn in judged if turn >= 0) == list(range(count))


def test_order_follows_from_seed_and_epoch() -> None:
    turns, again = EpochSampler(50, 0, 1, seed=0, views=3), EpochSampler(50, 0, 1, seed=0, views=3)
    first = list(turns)
    turns.set_epoch(4)
    again.set_epoch(4)
    assert list(turns) == list(again) != first
    assert {turn for _, turn in turns} == {1}


def test_share_of_each_gloss_is_held_out() -> None:
    clips = [LabeledClip(Path(), f"{c}/{n}", str(c), c) for c, many in enumerate((10, 2, 1)) for n in range(many)]
    train, held_out = hold_out(clips, 0.2, seed=0)
    assert [sum(clip.class_id == c for clip in held_out) for c in range(3)] == [2, 1, 0]
    assert len(train) + len(held_out) == len(clips)
    assert hold_out(clips, 0.2, seed=0) == (train, held_out) != hold_out(clips, 0.2, seed=1)
