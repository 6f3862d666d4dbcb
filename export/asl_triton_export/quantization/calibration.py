"""Clips to quantize a network with, and others to measure what that cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from asl_triton.errors import LabelsError, VideoError
from asl_triton.evaluation.dataset import read_dataset
from asl_triton.presets import Preset
from asl_triton.video.discovery import Clip, find_clips
from asl_triton.video.preprocessing import crop_frames
from asl_triton.video.reader import Image, Limits, open_video
from asl_triton.video.windows import cut_windows

MAX_CLIPS = 32  # to quantize with: the ranges of activations change little with more
MAX_FRAMES = 64  # of each: what a forward of it holds is 30 MB a frame
MAX_HELD_OUT = 64  # to measure with

Item = TypeVar("Item")


@dataclass(frozen=True)
class Calibration:
    """Clips of `folder`. `clips` are what a network is quantized with, as the client crops them: uint8 RGB
    (T, 224, 224, 3). `held_out` are to measure with, `LabeledClip` where the folder has a sub-folder a gloss: other
    files if `apart`, the same where there is only one."""

    folder: Path
    clips: tuple[Image, ...]
    held_out: tuple[Clip, ...]
    apart: bool


def read_calibration(folder: Path, preset: Preset, labels: Sequence[str]) -> Calibration:
    """Choose clips of a folder and below, evenly over their names, and decode those to quantize with.

    Half of them, 32 at most, to quantize with; of the others 64 at most to measure with. Clips that cannot be read are
    passed over.

    Raises:
        VideoError: there is no such folder, no video in it, or none that can be read.
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
        raise VideoError(
            f"not one of {len(chosen)} clips in {folder} can be read, the last of them because {failure}"
        ) from failure
    return Calibration(folder, tuple(decoded), tuple(sample_evenly(others or chosen, MAX_HELD_OUT)), apart=bool(others))


def find_labeled(folder: Path, labels: Sequence[str]) -> Sequence[Clip]:
    """The clips of a folder by name: with their glosses where its sub-folders are named after some of `labels`."""
    if not folder.is_dir():
        raise VideoError(f"there is no folder {folder} to calibrate with: name one with clips of yours")
    try:
        return read_dataset(folder, labels=labels).clips
    except (VideoError, LabelsError):  # no sub-folders, or of other names
        return find_clips(folder)


def read_windows(clip: Clip, preset: Preset) -> Iterator[Image]:
    """What the client would ask about a clip, request by request: uint8 RGB (T, 224, 224, 3).

    Raises:
        VideoError: it cannot be read.
    """
    limits = Limits()
    with open_video(clip.path, limits) as video:
        images = (crop.image for crop in crop_frames(video, preset, limits.max_frames))
        for window in cut_windows(images, preset):
            yield window.frames


def sample_evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, spread over all."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]
