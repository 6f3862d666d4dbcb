"""The parts of fine-tuning: loss, learning rate, sampling, and which process gets which clip."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from asl_triton.evaluation.dataset import LabeledClip
from asl_triton.presets import PRESETS
from asl_triton.results import SignerBox
from asl_triton.video.excerpt import Excerpt
from asl_triton_export.finetune.data import choose_clips, hold_out
from asl_triton_export.finetune.module import compute_loss, forward_clips, schedule_learning_rate
from asl_triton_export.finetune.sampling import EpochSampler, SegmentSampler, cut_served_windows
from asl_triton_export.i3d import Output
from tests.client.videos import levels, written_by_opencv
from tests.live.conftest import write_clip
from tests.networks import build_small_network


def test_loss_is_half_localization_and_half_classification() -> None:
    """Compared with train_i3d.py: F.upsample to the frames, one label per frame, the maximum over time."""
    net = build_small_network(5)
    torch.manual_seed(1)
    step_logits, class_ids = torch.randn(2, 7, 5), torch.tensor([3, 0])
    frame_logits = F.interpolate(step_logits.permute(0, 2, 1), size=64, mode="linear", align_corners=False)
    labels = torch.zeros(2, 5, 64)
    labels[0, 3], labels[1, 0] = 1, 1
    localization = F.binary_cross_entropy_with_logits(frame_logits, labels)
    classification = F.binary_cross_entropy_with_logits(frame_logits.max(dim=2)[0], labels.max(dim=2)[0])
    ours = compute_loss(net, Output(step_logits, torch.randn(2, 64, 8)), class_ids, PRESETS["wlasl"])
    assert torch.allclose(ours, 0.5 * localization + 0.5 * classification)


def test_checkpoint_scored_with_softmax_is_trained_with_cross_entropy() -> None:
    net = build_small_network(5)
    features, class_ids = torch.randn(2, 64, 8), torch.tensor([3, 0])
    output = forward_clips(net, features, PRESETS["bsl1k"])
    served = net.logits(features.mean(dim=2)[..., None, None, None]).flatten(1)
    assert torch.allclose(compute_loss(net, output, class_ids, PRESETS["bsl1k"]), F.cross_entropy(served, class_ids))


def test_network_with_interpolated_steps_is_trained_on_the_served_logits() -> None:
    net, preset = build_small_network(5), PRESETS["asl-citizen"]
    features, class_ids = torch.randn(2, 64, 8), torch.tensor([3, 0])
    output = forward_clips(net, features, preset)
    upsampled = F.interpolate(output.step_logits.transpose(1, 2), size=64, mode="linear", align_corners=False)
    served = upsampled.max(dim=2)[0]
    assert torch.allclose(compute_loss(net, output, class_ids, preset), F.cross_entropy(served, class_ids))


def test_features_give_the_same_logits_as_their_frames() -> None:
    net, preset = build_small_network(5), PRESETS["wlasl"]
    frames = torch.randint(0, 256, (1, 17, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        whole = forward_clips(net, frames, preset)
        again = forward_clips(net, whole.features, preset)
    assert torch.allclose(whole.step_logits, again.step_logits, atol=1e-5)


def test_learning_rate_matches_pytorchs_scheduler() -> None:
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


def test_every_segment_of_a_clip_is_equally_likely(tmp_path: Path) -> None:
    clip = LabeledClip(write_clip(tmp_path / "clip.mp4", 12), "clip.mp4", "home", 0)
    sampler = SegmentSampler(PRESETS["asl-inference"], 10, flip=False, seed=0)  # no room to crop: three segments in all
    drawn = sampler.draw(clip, 0, range(300))
    counts = np.unique([segment.tobytes() for segment in drawn], return_counts=True)[1]
    assert len(counts) == 3
    assert counts.min() > 70


def write_level_clip(path: Path, count: int, **options: object) -> LabeledClip:
    """Write a clip whose frame n has gray level n."""
    return LabeledClip(levels(path, range(count), size=(300, 300)), "clip", "home", 0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "first", "step"), [(40, 0, 1), (70, 3, 1), (120, 0, 2), (180, 0, 3)])
def test_preset_with_centered_frames_trains_on_the_served_frames(
    tmp_path: Path, count: int, first: int, step: int
) -> None:
    sampler = SegmentSampler(PRESETS["asl-citizen"], 20, flip=True, seed=0)
    taken = list(range(count))[first::step][:64]
    for segment in sampler.draw(write_level_clip(tmp_path / "clip.mkv", count), 0, range(4)):
        assert segment.shape == (64, 224, 224, 3)
        shown = segment.mean(axis=(1, 2, 3))
        assert shown[: len(taken)] == pytest.approx(taken, abs=2)
        rest = shown[len(taken) :]
        assert rest == pytest.approx(taken[0], abs=2) or rest == pytest.approx(taken[-1], abs=2)


def test_segment_of_an_excerpt_stays_within_it(tmp_path: Path) -> None:
    clip = write_level_clip(tmp_path / "clip.mkv", 100, excerpt=Excerpt(50, 69))
    for segment in SegmentSampler(PRESETS["wlasl"], 10, flip=False, seed=0).draw(clip, 0, range(5)):
        assert segment.min() >= 48 and segment.max() <= 71
    assert cut_served_windows(clip, PRESETS["wlasl"]).shape[:2] == (1, 20)


def test_preset_for_people_cuts_segments_from_the_signers_box(tmp_path: Path) -> None:
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[:, 80:] = 200
    path = written_by_opencv(tmp_path / "halves.mp4", [frame] * 12)
    sampler = SegmentSampler(PRESETS["bsl1k-person"], 10, flip=True, seed=0)
    for box, least, most in ((SignerBox(0.52, 0, 1, 1), 190, 210), (SignerBox(0, 0, 0.48, 1), 0, 10)):
        clip = LabeledClip(path, "clip", "home", 0, signer=box)
        for segment in (*sampler.draw(clip, 0, range(3)), cut_served_windows(clip, PRESETS["bsl1k-person"])[0]):
            assert least <= segment.min() and segment.max() <= most
    whole = sampler.draw(LabeledClip(path, "clip", "home", 0), 0, [0])[0]
    assert whole.min() < 10 and whole.max() > 190


def test_asl_citizen_is_split_by_its_subsets(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    (tmp_path / "videos").mkdir()
    for subset, names in {"train": ("a", "b"), "val": ("c",), "test": ("d",)}.items():
        rows = [f"P1,{name}.mp4,{gloss},X" for name, gloss in zip(names, ("DOG", "CAT"), strict=False)]
        text = "\n".join(["Participant ID,Video file,Gloss,ASL-LEX Code", *rows])
        (tmp_path / "splits" / f"{subset}.csv").write_text(text)
        for name in names if subset != "test" else ():
            write_clip(tmp_path / "videos" / f"{name}.mp4", 12, seed=ord(name))
    clips = choose_clips(tmp_path, None, None, 0.2, 0, lambda what, done, total: None)
    assert clips.glosses == ("CAT", "DOG")
    assert [[clip.name for clip in part] for part in (clips.train, clips.held_out)] == [["a.mp4", "b.mp4"], ["c.mp4"]]
    assert clips.missing == ("d.mp4",)


@pytest.mark.parametrize(("count", "world"), [(7, 1), (7, 2), (8, 3), (1, 4)])
def test_clips_are_dealt_evenly_among_processes(count: int, world: int) -> None:
    hands = [list(EpochSampler(count, rank, world, seed=0)) for rank in range(world)]
    assert len({len(hand) for hand in hands}) == 1
    assert {index for hand in hands for index, _ in hand} == set(range(count))
    judged = [turn for rank in range(world) for turn in EpochSampler(count, rank, world)]
    assert sorted(index for index, turn in judged if turn >= 0) == list(range(count))


def test_order_depends_only_on_seed_and_epoch() -> None:
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
