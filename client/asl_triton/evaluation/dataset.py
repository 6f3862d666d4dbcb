"""Labeled clips on disk: a folder with one sub-folder a gloss, or a split JSON of WLASL with its folder of videos."""

import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asl_triton.errors import LabelsError, VideoError
from asl_triton.files import read_at_most
from asl_triton.video.discovery import Clip, find_clips, format_name, is_hidden, is_video

MAX_SPLIT_BYTES = 64 * 2**20  # WLASL's largest is 2 MB
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class LabeledClip(Clip):
    """A clip and what is signed in it: `class_id` is the place of `gloss` in `Dataset.glosses`.

    `name` is `gloss folder/file`, or WLASL's video id; `subset` is "train", "val" or "test", None in a folder.
    """

    gloss: str
    class_id: int
    subset: str | None = None


@dataclass(frozen=True)
class Dataset:
    """What was found, and what was not. `clips` are in the order of their names, which are all different."""

    clips: tuple[LabeledClip, ...]
    glosses: tuple[str, ...]  # in class order: the labels given, or the folders with clips, sorted
    missing: tuple[str, ...] = ()  # ids of the videos that the split names and the folder of videos has not
    unknown: tuple[str, ...] = ()  # folders that are no gloss of the labels given: their clips are left out
    warnings: tuple[str, ...] = ()  # what is odd, one sentence each


def read_dataset(
    data: Path, *, videos: Path | None = None, subset: str | None = None, labels: Sequence[str] | None = None
) -> Dataset:
    """Find labeled clips; none is opened.

    A folder: the clips below each sub-folder are of the gloss that it is named after. With `labels` a folder is matched
    to the one of its name, or to the only one that differs by case alone.

    A split JSON: `{video id: {"subset": "train", "action": [class, first frame, last frame]}}`; `videos` is its folder,
    `videos` beside it if not given; `subset` takes one part of it. The class counts in `labels`, from 0. The frames
    count from 1, last -1 is the end, in the video that the clip was cut from: WLASL's preprocessing has cut it already,
    its test loader reads whole files (`nslt_dataset_all.py`), and so do we.

    Raises:
        VideoError: there are no such files, the JSON is no split, or not one clip is there.
        LabelsError: `labels` are needed and not given, or are of another vocabulary.
    """
    if data.is_dir():
        if videos is not None or subset is not None:
            option = "--videos" if videos is not None else "--subset"
            raise VideoError(f"{data} is a folder of gloss folders, and {option} is for a split JSON: leave it out")
        return read_folder(data, labels)
    if not data.is_file():
        raise VideoError(f"there is no {data}: name a folder with one sub-folder a gloss, or a split JSON of WLASL")
    if labels is None:
        raise LabelsError(f"{data} numbers its classes: give their glosses with --labels (wlasl_class_list.txt)")
    return read_split(data, data.parent / "videos" if videos is None else videos, subset, labels)


def read_folder(folder: Path, labels: Sequence[str] | None) -> Dataset:
    """The clips of a folder with one sub-folder a gloss."""
    try:
        entries = sorted((e for e in os.scandir(folder) if not is_hidden(e.name)), key=lambda e: e.name)
    except OSError as exc:
        raise VideoError(f"cannot read {folder}: {exc.strerror}") from exc
    found = {entry.name: find_labeled_clips(Path(entry.path)) for entry in entries if entry.is_dir()}
    full = {name: clips for name, clips in found.items() if clips}
    if not full:
        raise VideoError(f"{folder} has no sub-folder with a video in it: it takes one sub-folder a gloss")
    names = tuple(format_name(name) for name in full)
    glosses = names if labels is None else tuple(labels)
    class_ids = dict(zip(full, assign_classes(names, glosses), strict=True))
    unknown = [name for name in full if class_ids[name] is None]
    if len(unknown) == len(full):
        raise LabelsError(
            f"not one of the {len(full)} gloss folders in {folder} ({format_list(names)}) is among the {len(glosses)} "
            f"glosses of the labels (such as {format_list(glosses)}): they are of another vocabulary"
        )
    warnings = []
    if empty := [format_name(name) for name in found if name not in full]:
        warnings.append(
            f"{format_count(len(empty), 'gloss folder has', 'gloss folders have')} no video: {format_list(empty)}"
        )
    if outside := [entry.name for entry in entries if is_video(Path(entry.name)) and entry.is_file()]:
        warnings.append(f"{format_count(len(outside), 'video is', 'videos are')} left out, lying in no gloss folder")
    for alike in group_by_case(names):
        warnings.append(f"the gloss folders {format_list(alike)} differ by case alone: rename one if they are one sign")
    if unknown:
        lost = format_count(sum(len(full[name]) for name in unknown), "clip is", "clips are")
        warnings.append(
            f"{format_count(len(unknown), 'gloss folder is', 'gloss folders are')} not among the labels, and {lost} "
            f"left out: {format_list([format_name(name) for name in unknown])}"
        )
    clips = [
        LabeledClip(clip.path, f"{format_name(name)}/{clip.name}", glosses[class_id], class_id)
        for name, class_id in class_ids.items()
        if class_id is not None
        for clip in full[name]
    ]
    return Dataset(
        tuple(sorted(clips, key=lambda clip: clip.name)),
        glosses,
        unknown=tuple(format_name(name) for name in unknown),
        warnings=tuple(warnings),
    )


def find_labeled_clips(folder: Path) -> list[Clip]:
    """The clips in a folder and below, none where it has none."""
    try:
        return find_clips(folder)
    except VideoError:
        return []


def assign_classes(names: Sequence[str], glosses: Sequence[str]) -> list[int | None]:
    """The class of each name, or else the only one that differs by case alone, or by how accents are written."""
    exact = {gloss: class_id for class_id, gloss in enumerate(glosses)}
    alike: dict[str, list[int]] = defaultdict(list)
    for class_id, gloss in enumerate(glosses):
        alike[fold_case(gloss)].append(class_id)
    only = {name: class_ids[0] for name, class_ids in alike.items() if len(class_ids) == 1}
    return [exact.get(name, only.get(fold_case(name))) for name in names]


def group_by_case(names: Sequence[str]) -> list[list[str]]:
    """The names that differ by case alone, those of each group together."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[fold_case(name)].append(name)
    return [group for group in alike.values() if len(group) > 1]


def fold_case(name: str) -> str:
    """A name without case, its accents composed: macOS writes them apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def read_split(path: Path, videos: Path, subset: str | None, labels: Sequence[str]) -> Dataset:
    """The clips of a split JSON that are in the folder `videos`."""
    entries = [parse_entries(path, video, entry) for video, entry in read_json(path).items()]
    wanted = [entry for entry in entries if subset in (None, entry.subset)]
    if not wanted:
        has = ", ".join(f"{name} ({count:,})" for name, count in Counter(e.subset for e in entries).items())
        raise VideoError(f"{path} has no video in the subset {subset!r}: it has {has}")
    beyond = max(wanted, key=lambda entry: entry.class_id)
    if beyond.class_id >= len(labels):
        raise LabelsError(
            f"{path} has {beyond.name} in class {beyond.class_id}, and there are labels for {len(labels)}: they are of "
            "another vocabulary. Ask a model with the classes of this split, or give its own split"
        )
    try:
        present: dict[str, Path] = {}
        for name in sorted(os.listdir(videos), key=lambda n: (n.lower().endswith(".mp4"), n)):  # .mp4 wins
            if is_video(Path(name)):
                present[Path(name).stem] = videos / name
    except OSError as exc:
        raise VideoError(f"cannot read the videos of {path} in {videos}: {exc.strerror}. Name it (--videos)") from exc
    missing = sorted(entry.name for entry in wanted if entry.name not in present)
    if len(missing) == len(wanted):
        raise VideoError(
            f"not one of the {len(wanted):,} videos that {path} names is in {videos} (such as {missing[0]}.mp4): "
            "name their folder with --videos"
        )
    clips = (
        LabeledClip(present[e.name], e.name, labels[e.class_id], e.class_id, e.subset)
        for e in wanted
        if e.name in present
    )
    return Dataset(tuple(sorted(clips, key=lambda c: c.name)), tuple(labels), missing=tuple(missing))


@dataclass(frozen=True)
class SplitEntry:
    """What a split says of a video."""

    name: str
    class_id: int
    subset: str


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, not empty."""
    try:
        text = read_at_most(path, MAX_SPLIT_BYTES)
        if text is None:
            raise VideoError(f"{path} is larger than {MAX_SPLIT_BYTES // 2**20} MiB: no split JSON of WLASL")
        content = json.loads(text.decode("utf-8-sig"))
    except OSError as exc:
        raise VideoError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise VideoError(
            f"{path} is not JSON: name a folder with one sub-folder a gloss, or a split JSON of WLASL (nslt_100.json)"
        ) from exc
    if not isinstance(content, dict) or not content:
        raise VideoError(
            f'{path} is no split of WLASL, {{"video id": {{"subset": "test", "action": [class, first, last]}}}}: '
            "name one such as nslt_100.json, not the list of glosses (WLASL_v0.3.json)"
        )
    return content


def parse_entries(path: Path, video: str, entry: object) -> SplitEntry:
    """One entry of a split, checked."""
    subset = entry.get("subset") if isinstance(entry, dict) else None
    action = entry.get("action") if isinstance(entry, dict) else None
    numbers = isinstance(action, list) and len(action) == 3 and all(type(n) is int for n in action)
    if not isinstance(subset, str) or not isinstance(action, list) or not numbers or action[0] < 0:
        raise VideoError(
            f'{path}: video {video!r} should say {{"subset": "test", "action": [class, first, last]}}, and says '
            f"{json.dumps(entry)[:80]}"
        )
    return SplitEntry(format_name(video), action[0], subset)


def format_list(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def format_count(count: int, one: str, several: str) -> str:
    """A number and its noun."""
    return f"{count:,} {one if count == 1 else several}"
