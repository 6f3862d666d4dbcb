"""Chooses clips to quantize a network with, and others to measure the cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from asl_triton.decoding.factory import open_frames
from asl_triton.errors import LabelsError, VideoError
from asl_triton.evaluation.dataset import read_dataset
from asl_triton.presets import Preset
from asl_triton.video.colors import Image
from asl_triton.video.discovery import Clip, find_clips
from asl_triton.video.preprocessing import choose_frame_step, crop_frames
from asl_triton.video.reader import Limits
from asl_triton.video.windows import cut_windows

MAX_CLIPS = 32  # to quantize with; more hardly change the ranges of the activations
MAX_FRAMES = 64  # of each clip: a forward takes 30 MB per frame
MAX_HELD_OUT = 64  # to measure with

Item = TypeVar("Item")


@dataclass(frozen=True)
class Calibration:
    """Clips of `folder`.

    `clips` are used to quantize the network; they are uint8 RGB (T, 224, 224, 3), cropped as the client does.
    `held_out` are used to measure the cost; they are `LabeledClip` if the folder has one sub-folder per gloss. `apart`
    says whether these are different files from `clips`, which is impossible in a folder with a single clip.
    """

    folder: Path
    clips: tuple[Image, ...]
    held_out: tuple[Clip, ...]
    apart: bool


def read_calibration(folder: Path, preset: Preset, labels: Sequence[str]) -> Calibration:
    """Choose clips from a folder and its sub-folders, evenly by name, and decode those to quantize with.

    Half of the clips, up to 32, are used to quantize, and up to 64 of the others to measure the cost. Clips that cannot
    be read are skipped.

    Raises:
        VideoError: there is no such folder, it has no video, or none that can be read.
    """
    found = find_labeled(folder, labels)
    chosen = sample_evenly(found, min(MAX_CLIPS, (len(found) + 1) // 2))
    names = {clip.name for clip in chosen}
    others = [clip for clip in found if clip.name not in names]
    decoded, failure = [], None
    for clip in chosen:
        try:
            decoded.append(next(read_windows(clip, preset))[:MAX_FRAMES])
        except VideoError as exc:
            failure = exc
    if not decoded:
        raise VideoError(f"none of {len(chosen)} clips in {folder} can be read. The last error: {failure}") from failure
    return Calibration(folder, tuple(decoded), tuple(sample_evenly(others or chosen, MAX_HELD_OUT)), apart=bool(others))


def find_labeled(folder: Path, labels: Sequence[str]) -> Sequence[Clip]:
    """Find the clips of a folder, with their glosses if its sub-folders are named after some of `labels`."""
    if not folder.is_dir():
        raise VideoError(f"there is no folder {folder} to calibrate with: name a folder of your clips")
    try:
        return read_dataset(folder, labels=labels).clips
    except (VideoError, LabelsError):  # there are no sub-folders, or they have other names
        return find_clips(folder)


def read_windows(clip: Clip, preset: Preset) -> Iterator[Image]:
    """Yield the requests that the client would send for a clip: uint8 RGB (T, 224, 224, 3).

    Raises:
        VideoError: the clip cannot be read.
    """
    limits = Limits()
    with open_frames(clip.path, limits) as video:
        frames = islice(video, 0, None, choose_frame_step(preset, video.frame_rate))
        images = (crop.image for crop in crop_frames(frames, preset, limits.max_frames))
        for window in cut_windows(images, preset):
            yield window.frames


def sample_evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return up to `most` items, evenly spaced."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]
