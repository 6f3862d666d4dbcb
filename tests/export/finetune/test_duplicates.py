"""Copies of clips are found, but not takes that merely look alike."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from asl_triton.evaluation.dataset import LabeledClip
from asl_triton.video.colors import Image
from asl_triton_export.finetune.data import choose_clips, hold_out, read_clip
from asl_triton_export.finetune.duplicates import Thumbnails, find_copies, make_thumbnails
from tests.client.videos import written_by_opencv
from tests.live.conftest import write_clip


def read_thumbnails(path: Path) -> Thumbnails:
    with read_clip(LabeledClip(path, path.name, "home", 0)) as frames:
        return make_thumbnails(frames)


def read_images(path: Path) -> list[Image]:
    with read_clip(LabeledClip(path, path.name, "home", 0)) as frames:
        return [frame.image for frame in frames]


def copy_bytes(path: Path) -> Path:
    copy = path.with_name("copy.mp4")
    copy.write_bytes(path.read_bytes())
    return copy


def compress_again(path: Path) -> Path:
    coarse = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1] for image in read_images(path)]
    return written_by_opencv(path.with_name("copy.mp4"), [cv2.imdecode(image, cv2.IMREAD_COLOR) for image in coarse])


def halve(path: Path) -> Path:
    small = [cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in read_images(path)]
    return written_by_opencv(path.with_name("copy.mp4"), small)


def move_hand(path: Path) -> Path:
    """Write another take, which differs in 1 % of the picture."""
    images = [image.copy() for image in read_images(path)]
    for image in images:
        image[100:124, 100:132] = 255
    return written_by_opencv(path.with_name("take.mp4"), images)


@pytest.mark.parametrize("change", [copy_bytes, compress_again, halve])
def test_copy_is_found(tmp_path: Path, change: Callable[[Path], Path]) -> None:
    first, other = write_clip(tmp_path / "0.mp4", seed=1), write_clip(tmp_path / "1.mp4", seed=2)
    thumbnails = [read_thumbnails(path) for path in (other, first, change(first))]
    assert find_copies(thumbnails) == [0, 1, 1]


def test_another_take_in_front_of_the_same_wall_is_not_a_copy(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "0.mp4", seed=1)
    assert find_copies([read_thumbnails(first), read_thumbnails(move_hand(first))]) == [0, 1]


def test_copies_of_copies_are_one_group() -> None:
    base = np.random.default_rng(0).integers(0, 200, (8, 16, 16)).astype(np.uint8)
    chain = []
    for number in range(3):  # each changes some pixels: neighbors are close, the ends are not
        moved = base.copy()
        moved[:, : 4 * number, 0] += 16
        chain.append(moved)
    assert find_copies([chain[0], chain[2]]) == [0, 1]
    assert find_copies(chain) == [0, 0, 0]


def test_clips_are_compared_across_blocks() -> None:
    clips = list(np.random.default_rng(0).integers(0, 256, (1100, 8, 16, 16)).astype(np.uint8))
    assert find_copies([*clips, clips[3]]) == [*range(1100), 3]


@pytest.mark.parametrize("seed", range(8))
def test_copies_stay_on_one_side_of_the_split(seed: int) -> None:
    clips = [LabeledClip(Path(), f"{c}/{n}", str(c), c) for c in range(2) for n in range(6)]
    copies = {clip.name: clip.name for clip in clips} | {"0/1": "0/0", "0/2": "0/0", "1/5": "0/5"}
    train, held_out = ({clip.name for clip in part} for part in hold_out(clips, 0.4, seed, copies))
    assert len({"0/0", "0/1", "0/2"} & held_out) in (0, 3)
    assert {"0/5", "1/5"} <= train  # copies with different glosses
    for gloss in ("0", "1"):
        assert {name[0] for name in train} >= {gloss} and {name[0] for name in held_out} >= {gloss}


def test_held_out_copy_of_a_training_clip_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    for subset, names in {"train": ("a", "b"), "val": ("c", "d"), "test": ("e",)}.items():
        rows = [f"P1,{name}.mp4,DOG,X" for name in names]
        text = "\n".join(["Participant ID,Video file,Gloss,ASL-LEX Code", *rows])
        (tmp_path / "splits" / f"{subset}.csv").write_text(text)
    for seed, name in enumerate("abc"):
        write_clip(tmp_path / "videos" / f"{name}.mp4", 12, seed=seed)
    (tmp_path / "videos" / "d.mp4").write_bytes((tmp_path / "videos" / "a.mp4").read_bytes())
    clips = choose_clips(tmp_path, None, None, 0.2, 0, lambda what, done, total: None)
    assert [clip.name for clip in clips.held_out] == ["c.mp4"]
    assert "1 held-out clip is a copy of training clips and will be ignored: d.mp4" in " ".join(clips.warnings)
