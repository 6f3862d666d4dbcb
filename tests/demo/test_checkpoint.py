from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from asl_triton.presets import PRESETS, Preset
from asl_triton.video.preprocessing import crop_frames
from asl_triton.video.reader import Frame
from asl_triton.video.windows import cut_windows
from asl_triton_demo import training as demo_training
from asl_triton_demo.signer import render
from asl_triton_demo.signs import SIGNS, Sign
from asl_triton_demo.training import (
    FIRST_HELD_OUT_SEED,
    Draws,
    Stage,
    Training,
    make_idle_sign,
    make_step_targets,
    window,
)
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import load_checkpoint, read_labels_for
from asl_triton_export.i3d import I3D, normalize
from tests.paths import DEMO_BUNDLE

TINY = (
    Stage(28, 16, 2, 2, 1e-3, True, (0.8, 1.2), clips_per_sign=1, first_seed=0),
    Stage(56, 9, 1, 1, 1e-3, False, (0.8, 1.2), clips_per_sign=1, first_seed=0),
)


@pytest.fixture(scope="module")
def network() -> I3D:
    return load_checkpoint(DEMO_BUNDLE / "weights.safetensors").network()


@pytest.fixture(autouse=True)
def isolate_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads wait for each other when another process uses a core
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@torch.inference_mode()
def compute_confidences(network: I3D, sign: Sign, seed: int) -> np.ndarray:
    """Return the confidences (C,) of the trained network for a rendered clip, prepared as in the client."""
    preset = PRESETS["wlasl"]
    frames = (Frame(image[..., ::-1], 0) for image in render(sign, seed).frames)
    images = (crop.image for crop in crop_frames(frames, preset, 300))
    clip = torch.from_numpy(next(cut_windows(images, preset)).frames)
    return network(normalize(clip[None], preset)).step_logits[0].amax(dim=0).sigmoid().numpy()


def test_bundle_is_complete_and_small() -> None:
    bundle = open_bundle(DEMO_BUNDLE)
    assert bundle.weights == DEMO_BUNDLE / "weights.safetensors"
    assert bundle.weights.stat().st_size < 4_000_000
    assert bundle.labels is not None
    labels = read_labels_for(load_checkpoint(bundle.weights), bundle.labels)
    assert labels == tuple(sign.gloss for sign in SIGNS)
    assert bundle.preset == PRESETS["wlasl"] == Preset.from_json((DEMO_BUNDLE / "preset.json").read_text())
    assert "real people" in (DEMO_BUNDLE / "README.md").read_text()


@pytest.mark.parametrize("index", range(0, len(SIGNS), 4))
def test_signs_of_unseen_signers_are_recognized(network: I3D, index: int) -> None:
    scores = compute_confidences(network, SIGNS[index], FIRST_HELD_OUT_SEED + 500 + index)
    assert scores.argmax() == index
    assert scores[index] > 0.5


@pytest.mark.parametrize("seed", [FIRST_HELD_OUT_SEED + 500, FIRST_HELD_OUT_SEED + 501])
def test_resting_signer_gets_no_gloss(network: I3D, seed: int) -> None:
    assert compute_confidences(network, make_idle_sign(seed), seed).max() < 0.5


def test_interrupted_training_resumes_with_the_same_losses(tmp_path: Path) -> None:
    unbroken = list(Training(tmp_path / "unbroken", TINY, seed=3).losses(workers=0, bfloat16=False))
    assert len(unbroken) == 3
    assert np.isfinite(unbroken).all()

    interrupted = Training(tmp_path / "interrupted", TINY, seed=3)
    losses = list(islice(interrupted.losses(workers=0, bfloat16=False), 1))
    interrupted.save()
    resumed = Training(tmp_path / "interrupted", TINY, seed=3)
    assert resumed.step == 1
    losses += resumed.losses(workers=0, bfloat16=False)
    assert losses == pytest.approx(unbroken, rel=1e-3)


def test_program_trains_from_scratch_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_training, "STAGES", TINY)
    bundle, work = tmp_path / "bundle", tmp_path / "work"
    demo_training.main(bundle, work, minutes=0, held_out=0, workers=0, bfloat16=False)
    assert Training(work, TINY, seed=0).step == 1
    demo_training.main(bundle, work, held_out=0, workers=0, bfloat16=False)
    trained = Training(work, TINY, seed=0)
    assert trained.step == 3
    weights = load_checkpoint(open_bundle(bundle).weights)
    assert (weights.num_classes, weights.width) == (20, 0.25)
    stem = trained.net.state_dict()["Conv3d_1a_7x7.conv3d.weight"]
    torch.testing.assert_close(weights.state["Conv3d_1a_7x7.conv3d.weight"], stem, rtol=1e-3, atol=1e-6)


def test_draws_depend_only_on_their_number(tmp_path: Path) -> None:
    clips = [Draws(TINY[0], tmp_path, seed=0) for _ in range(2)]
    for number in range(3):
        (frames, label, clip, steps), again = (draws[number] for draws in clips)
        assert frames.shape == (16, 28, 28, 3)
        assert steps.shape == (1,)
        assert clip in (0, 1) or np.isnan(clip)
        assert label in range(-1, 20)
        np.testing.assert_array_equal(frames, again[0])


def test_targets_are_zero_at_rest_and_undefined_in_between() -> None:
    active = np.arange(48) >= 24
    np.testing.assert_array_equal(make_step_targets(active), [0, 0, np.nan, 1, 1])
    np.testing.assert_array_equal(make_step_targets(np.ones(9, bool)), [1])


def test_windows_go_forward_and_stay_close_to_the_clip() -> None:
    rng = np.random.default_rng(0)
    for length in (32, 60, 108):
        shown = np.stack([window(length, demo_training.STAGES[0], rng) for _ in range(200)])
        assert (np.diff(shown) >= 0).all()
        assert (np.diff(shown) <= 2).all()
        assert shown.min() >= -12
        assert shown.max() < length + 12
