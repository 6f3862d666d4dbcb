import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from asl_triton_demo.handshapes import HANDSHAPES, Handshape
from asl_triton_demo.motion import (
    FOREARM_LENGTH,
    SHOULDER,
    UPPER_ARM_LENGTH,
    Arm,
    Execution,
    compute_duration_s,
    compute_wrist,
    perform,
)
from asl_triton_demo.signer import (
    CODECS,
    FRAME_RATES,
    MAX_FRAMES,
    MIN_FRAMES,
    SIZES,
    Placement,
    RenderedClip,
    make_generator,
    plan_take,
    render,
    render_demo,
    write_video,
)
from asl_triton_demo.signs import ANCHORS, SIGNS, Keyframe, Pose, Sign, direction

SMALL = (96, 128)
GLOSSES = [sign.gloss for sign in SIGNS]
by_gloss = pytest.mark.parametrize("sign", SIGNS, ids=GLOSSES)


def compute_hands(sign: Sign, count: int = 48) -> np.ndarray:
    """Return wrists and fingertips of both hands in a performance without variation: (T, 12, 3)."""
    execution = Execution(repeats=sign.repeats[0])
    moments = np.linspace(0, compute_duration_s(sign, execution), count)
    arms = perform(sign, execution, moments, np.random.default_rng(0))
    return np.concatenate([select_points(arm) for arm in arms], axis=1)


def select_points(arm: Arm) -> np.ndarray:
    return np.concatenate([arm.wrist[:, None], arm.bones[:, [6, 9, 12, 15, 18], 1]], axis=1)  # (T, 6, 3)


def list_poses(sign: Sign) -> list[Pose]:
    return [pose for keyframe in sign.keyframes for pose in (keyframe.hand, keyframe.other) if pose is not None]


def compute_reach(pose: Pose) -> float:
    """Return the distance from wrist to shoulder; 1 is a straight arm."""
    return float(np.linalg.norm(compute_wrist(pose) - SHOULDER)) / (UPPER_ARM_LENGTH + FOREARM_LENGTH)


def test_twenty_signs_in_alphabetical_order() -> None:
    assert len(SIGNS) == 20
    assert sorted(set(GLOSSES)) == GLOSSES
    assert [gloss.lower() for gloss in GLOSSES] == GLOSSES


def test_same_seed_renders_the_same_bytes() -> None:
    first, again = (render("book", 5, size=SMALL) for _ in range(2))
    assert first.frames.tobytes() == again.frames.tobytes()
    assert first.fps == again.fps


@pytest.mark.parametrize(
    ("gloss", "seed", "size", "digest"),
    [
        ("book", 5, SMALL, "9e40b2cfb56ed88e"),
        ("thank you", 1_000_003, None, "42255c6c133d4098"),
        ("help", 11, None, "79002c78524a0f36"),
    ],
)
def test_rendered_clips_do_not_change(gloss: str, seed: int, size: tuple[int, int] | None, digest: str) -> None:
    """The checkpoint was trained on these clips, and its model folders contain its answer to one."""
    frames = render(gloss, seed, size=size).frames
    assert hashlib.sha256(frames.tobytes()).hexdigest().startswith(digest)


def test_signer_is_placed_in_the_picture() -> None:
    usual = render("book", 5, size=(240, 320), num_frames=3)
    half = render("book", 5, size=(480, 640), num_frames=3, placement=Placement(0.5, 0.25, 0.5))
    assert usual.signer is not None and half.signer is not None
    left, top, right, bottom = half.signer
    assert (right - left) == pytest.approx(usual.signer[2] - usual.signer[0], abs=2)
    assert (left + right) / 2 == pytest.approx(160, abs=20)
    # The usual picture of the signer is centered in the frame, and a quarter of the frame is above it.
    assert top - 120 == pytest.approx(usual.signer[1], abs=2)
    assert bottom < 480 and half.frames.shape == (3, 480, 640, 3)
    moved = render("book", 5, size=(480, 640), num_frames=3, placement=Placement(0.5, 0.75, 0.5))
    differs = np.abs(moved.frames[0].astype(int) - half.frames[0]).max(axis=2) > 60
    assert moved.signer is not None
    places = np.zeros((480, 640), bool)
    for x0, y0, x1, y1 in (half.signer, moved.signer):
        places[y0 - 2 : y1 + 2, x0 - 2 : x1 + 2] = True
        assert differs[y0:y1, x0:x1].mean() > 0.2
    assert differs[~places].mean() < 0.01  # shadows


@pytest.mark.parametrize("placement", [Placement(1.4, 0.5, 0.6), Placement(0.5, 0.02, 0.9), Placement(0.3, 0.98, 0.1)])
def test_box_is_clipped_at_the_edge_of_the_frame(placement: Placement) -> None:
    clip = render("help", 3, size=(300, 400), num_frames=2, placement=placement)
    assert clip.signer is not None
    left, top, right, bottom = clip.signer
    assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300


def test_signer_walks() -> None:
    clip = render("help", 3, size=(240, 640), num_frames=5, placement=Placement(0.7, 0.2, 0.55, walks_to=0.8))
    assert clip.signer is not None
    x0, y0, x1, y1 = clip.signer
    step = round(0.6 * 640)
    assert x1 + step < 640
    first, last = clip.frames[0, y0:y1, x0:x1], clip.frames[-1, y0:y1, x0 + step : x1 + step]
    assert (
        np.abs(first.astype(int) - last).mean() < np.abs(first.astype(int) - clip.frames[-1, y0:y1, x0:x1]).mean() / 2
    )


def test_command_places_the_signer(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "asl_triton_demo.signer", str(tmp_path), "--signs", "book", "--size", "320x180",
        "--scale", "0.5", "--x", "0.3",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    capture = cv2.VideoCapture(ended.stdout.strip())
    found, frame = capture.read()
    assert found and frame.shape == (180, 320, 3)
    refused = subprocess.run([*command, "--size", "320"], capture_output=True, text=True)
    assert refused.returncode == 2 and "--size" in refused.stderr and "Traceback" not in refused.stderr


@by_gloss
def test_frames_match_the_contract(sign: Sign) -> None:
    clip = render(sign, 2, size=SMALL, num_frames=10, fps=12.5)
    assert clip.frames.shape == (10, *SMALL, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.flags.c_contiguous
    assert (clip.fps, clip.gloss, clip.seed) == (12.5, sign.gloss, 2)


def test_default_frame_count_size_and_rate_stay_in_range() -> None:
    takes = [plan_take(sign, make_generator(sign.gloss, seed)) for sign in SIGNS for seed in range(12)]
    assert all(MIN_FRAMES <= take.num_frames <= MAX_FRAMES for take in takes)
    assert {take.size for take in takes} == set(SIZES)
    assert {take.fps for take in takes} == set(FRAME_RATES)
    lengths = [take.num_frames / take.fps for take in takes]
    assert min(lengths) > 1.1
    assert max(lengths) < 3.4


def test_seeds_vary_the_picture_and_the_movement() -> None:
    clips = [render("please", seed, size=SMALL, num_frames=12) for seed in range(6)]
    for one, other in itertools.combinations(clips, 2):
        assert np.abs(one.frames[0].astype(int) - other.frames[0]).mean() > 4
    wrists = [plan_take(SIGNS[0], make_generator("book", seed), num_frames=24).arms[0].wrist for seed in range(6)]
    for path, another in itertools.combinations(wrists, 2):
        assert np.abs(path - another).max() > 0.02


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SIGNS, 2)), ids=lambda sign: sign.gloss)
def test_signs_differ_in_movement(one: Sign, other: Sign) -> None:
    """At some point, a wrist or fingertip is a third of a shoulder width from its place in the other sign."""
    apart = np.linalg.norm(compute_hands(one) - compute_hands(other), axis=-1)  # (T, 12)
    assert apart.max() > 0.33


@by_gloss
def test_clips_start_and_end_at_rest(sign: Sign) -> None:
    hands = compute_hands(sign)
    np.testing.assert_allclose(hands[0], hands[-1], atol=0.02)
    assert hands[0, :, 1].max() < -1.0  # every fingertip hangs at the hips


@by_gloss
def test_hands_reach_every_keyframe(sign: Sign) -> None:
    assert max(compute_reach(pose) for pose in list_poses(sign)) < 0.98
    hands = compute_hands(sign, count=400)
    for keyframe in sign.keyframes:
        signing = np.linalg.norm(hands[:, 0] - compute_wrist(keyframe.hand), axis=1).min()
        assert signing < 0.03
        if keyframe.other is not None:
            target = compute_wrist(keyframe.other) * (-1, 1, 1)
            assert np.linalg.norm(hands[:, 6] - target, axis=1).min() < 0.03


@by_gloss
def test_hands_stay_in_the_crop_while_they_sign(sign: Sign) -> None:
    """The networks see the middle 7/8 of a picture; 2.5 shoulder widths is the tightest framing."""
    half = 2.5 / 2 * 7 / 8
    hands = compute_hands(sign, count=120)
    raised = hands[:, :6][hands[:, 0, 1] > -0.8]  # the signing hand, away from rest
    assert np.abs(raised[..., 0]).max() < half * 1.02
    assert raised[..., 1].max() < 1.05


def test_left_handed_signers_mirror_the_sign() -> None:
    takes = [plan_take(SIGNS[4], make_generator("go", seed), num_frames=32) for seed in range(40)]
    left = next(take for take in takes if take.left_handed)
    right = next(take for take in takes if not take.left_handed)
    assert sum(take.left_handed for take in takes) < 20
    for arm, side in ((left.arms[0], 1), (left.arms[1], -1), (right.arms[0], -1), (right.arms[1], 1)):
        assert np.all(np.sign(arm.shoulder[:, 0]) == side)


def test_both_makes_the_other_hand_mirror_the_signing_hand() -> None:
    sign = next(sign for sign in SIGNS if sign.both)
    hands = compute_hands(sign)
    np.testing.assert_allclose(hands[:, :6] * (-1, 1, 1), hands[:, 6:], atol=1e-9)


def test_other_hand_of_a_one_handed_sign_rests() -> None:
    hands = compute_hands(next(sign for sign in SIGNS if sign.gloss == "mother"))
    assert np.ptp(hands[:, 6:], axis=0).max() < 1e-9


def test_repeats_lengthen_the_sign() -> None:
    sign = next(sign for sign in SIGNS if sign.gloss == "eat")
    once, twice = (compute_duration_s(sign, Execution(repeats=n)) for n in (1, 2))
    assert twice - once == pytest.approx(sum(keyframe.seconds for keyframe in sign.keyframes))


def test_long_clip_is_filled_with_rest() -> None:
    take = plan_take(SIGNS[0], make_generator("book", 0), num_frames=400, fps=25)
    assert take.execution.lead_s > 3
    np.testing.assert_allclose(take.arms[0].wrist[:50], take.arms[0].wrist[:1].repeat(50, axis=0))


def test_custom_sign_renders() -> None:
    horns = Handshape(
        flexion=((0, 0, 0), (85, 100, 60), (85, 100, 60), (0, 0, 0)),
        thumb=((-0.21, 0.26, 0.13), (-0.14, 0.36, 0.25), (0.0, 0.39, 0.29)),
    )
    sign = Sign(
        "of one's own",
        (
            Keyframe(0.2, Pose("temple", horns, "up+out", "away", touch="thumb")),
            Keyframe(0.2, Pose("chest", "y", "in", "toward"), Pose("neutral", "flat", "in+away", "up")),
        ),
        repeats=(1, 2),
        face="smile",
        head="nod",
    )
    clip = render(sign, 0, size=SMALL)
    assert clip.gloss == "of one's own"
    moved = np.abs(clip.frames[len(clip.frames) // 2].astype(int) - clip.frames[0]).max(axis=2)
    assert (moved > 40).mean() > 0.01


@pytest.mark.parametrize("shape", HANDSHAPES)
def test_every_handshape_renders_from_every_side(shape: str) -> None:
    poses = [Pose("neutral", shape, "up", palm) for palm in ("away", "in", "toward", "out")]
    sign = Sign(shape, tuple(Keyframe(0.2, pose) for pose in poses))
    assert np.isfinite(compute_hands(sign)).all()
    assert render(sign, 0, size=(48, 48), num_frames=6).frames.shape == (6, 48, 48, 3)


def test_handshapes_differ_in_outline() -> None:
    for one, other in itertools.combinations(HANDSHAPES.values(), 2):
        angles = np.abs(np.subtract(one.flexion, other.flexion)).max()
        spread = np.abs(np.subtract(one.spread, other.spread)).max()
        thumb = np.abs(np.subtract(one.thumb, other.thumb)).max()
        assert angles > 15 or spread > 10 or thumb > 0.1


def test_impossible_poses_are_explained() -> None:
    with pytest.raises(ValueError, match="'sideways' is not a direction"):
        direction("up+sideways")
    with pytest.raises(ValueError, match="must differ from fingers"):
        compute_wrist(Pose("chin", "flat", "up", "down"))
    with pytest.raises(KeyError, match="no demo sign 'xylophone'"):
        render("xylophone", 0)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_both_hands_reach_every_anchor(anchor: str) -> None:
    assert compute_reach(Pose(anchor, "index", "up+in", "toward", touch="tips")) < 0.98


@pytest.mark.parametrize("suffix", CODECS)
def test_written_video_reads_back(tmp_path: Path, suffix: str) -> None:
    clip = render("more", 1, size=SMALL, num_frames=32, fps=29.97)
    path = tmp_path / f"more{suffix}"
    write_video(clip, path)
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(29.97)
    frames = []
    while True:
        found, frame = capture.read()
        if not found:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    assert np.shape(frames) == clip.frames.shape
    assert np.abs(np.subtract(frames, clip.frames, dtype=int)).mean() < 6


def test_unwritable_video_is_an_error(tmp_path: Path) -> None:
    clip = RenderedClip(np.zeros((2, 32, 32, 3), np.uint8), 25, "none", 0)
    with pytest.raises(ValueError, match=r"use \.mp4"):
        write_video(clip, tmp_path / "clip.gif")
    with pytest.raises(OSError, match="cannot write"):
        write_video(clip, tmp_path / "missing" / "clip.mp4")


def test_demo_folder_has_a_file_for_every_sign_and_seed(tmp_path: Path) -> None:
    quick = replace(SIGNS[GLOSSES.index("thank you")], repeats=(1, 1))
    paths = render_demo(tmp_path / "clips", signs=(quick, "go"), seeds=(3,))
    names = ["thank-you_3.mp4", "go_3.mp4"]
    assert [path.name for path in paths] == names
    assert all(path.stat().st_size > 1000 for path in paths)
