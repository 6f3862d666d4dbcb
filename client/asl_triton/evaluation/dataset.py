"""Finds labeled clips on disk: a folder with one subfolder per gloss, or a data set as its authors publish it.

Data sets are WLASL (`nslt_2000.json` or `WLASL_v0.3.json`), ASL Citizen (`splits/*.csv`) and MS-ASL (`MSASL_*.json`).
`published.py` has the readers of all these files but `nslt_2000.json`.
"""

import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asl_triton.decoding.factory import open_frames
from asl_triton.errors import AslTritonError, LabelsError, VideoError
from asl_triton.evaluation.published import Annotation, find_annotations, find_videos_folder, read_annotations
from asl_triton.files import read_at_most
from asl_triton.results import SignerBox
from asl_triton.video.discovery import Clip, find_clips, format_name, is_hidden, is_video

MAX_SPLIT_BYTES = 64 * 2**20  # WLASL's largest is 2 MB
SHOWN = 5  # names in a message
BOX_SLACK = 8  # pixels that a box may extend beyond its frame, as a few of WLASL's do


@dataclass(frozen=True)
class LabeledClip(Clip):
    """A clip and the gloss signed in it. `class_id` is the index of `gloss` in `Dataset.glosses`.

    `name` is `gloss folder/file`, or the data set's own name. `subset` is "train", "val" or "test", or None in a
    folder. `signer_id` is the data set's name for the signer.
    """

    gloss: str
    class_id: int
    subset: str | None = None
    signer_id: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The clips that were found, and what was missing. `clips` are sorted by name; names are unique.

    `has_subsets` is set if the data set defines subsets for training and testing.
    """

    clips: tuple[LabeledClip, ...]
    glosses: tuple[str, ...]  # in class order: the labels given, or the folders with clips, sorted
    missing: tuple[str, ...] = ()  # ids of videos that the split lists but the folder of videos lacks
    unknown: tuple[str, ...] = ()  # folders that match none of the given labels; their clips are left out
    warnings: tuple[str, ...] = ()  # one sentence each
    has_subsets: bool = False

    def with_signer(self, signer: SignerBox | None) -> "Dataset":
        """Return the same clips, with this signer's box for those without one."""
        clips = tuple(replace(clip, signer=clip.signer or signer) for clip in self.clips)
        return replace(self, clips=clips)


def read_dataset(
    data: Path, *, videos: Path | None = None, subset: str | None = None, labels: Sequence[str] | None = None
) -> Dataset:
    """Find labeled clips. A clip is opened only if its box is in pixels, to learn the size of its frames.

    A folder has one subfolder of clips per gloss, named after the gloss. With `labels`, a subfolder is matched to the
    label of the same name, or else to the only label that differs by case.

    A data set is a JSON or CSV file, or a folder of several. `videos` is the folder of its videos, by default `videos`
    next to the files. `subset` selects one part.

    A split JSON of WLASL is `{video id: {"subset": "train", "action": [class, first frame, last frame]}}`. The class is
    an index into `labels`. Frames count from 1 in the video that the clip was cut from; a last frame of -1 is the end.
    They are ignored, because WLASL's preprocessing has already cut the clips. WLASL's test loader reads whole files too
    (`nslt_dataset_all.py`).

    Raises:
        VideoError: the files do not exist, a file is not from a known data set, or no clip was found.
        LabelsError: `labels` are required but not given, or are from another vocabulary.
    """
    if annotations := find_annotations(data):
        return read_published(annotations, videos or find_videos_folder(data), subset, labels)
    if data.is_dir():
        if videos is not None or subset is not None:
            option = "--videos" if videos is not None else "--subset"
            raise VideoError(f"{data} is a folder of gloss folders, but {option} is only for data sets: remove it")
        return read_folder(data, labels)
    if not data.is_file():
        raise VideoError(f"{data} does not exist: name a folder with one subfolder per gloss, or a data set's file")
    if labels is None:
        raise LabelsError(f"{data} numbers its classes: give their glosses with --labels (wlasl_class_list.txt)")
    return read_split(data, data.parent / "videos" if videos is None else videos, subset, labels)


def read_folder(folder: Path, labels: Sequence[str] | None) -> Dataset:
    """Read a folder with one subfolder of clips per gloss."""
    try:
        entries = sorted((e for e in os.scandir(folder) if not is_hidden(e.name)), key=lambda e: e.name)
    except OSError as exc:
        raise VideoError(f"cannot read {folder}: {exc.strerror}") from exc
    found = {entry.name: find_labeled_clips(Path(entry.path)) for entry in entries if entry.is_dir()}
    full = {name: clips for name, clips in found.items() if clips}
    if not full:
        raise VideoError(f"{folder} has no subfolder with a video: it needs one subfolder of clips per gloss")
    names = tuple(format_name(name) for name in full)
    glosses = names if labels is None else tuple(labels)
    class_ids = dict(zip(full, assign_classes(names, glosses), strict=True))
    unknown = [name for name in full if class_ids[name] is None]
    if len(unknown) == len(full):
        raise LabelsError(
            f"none of the {len(full)} gloss folders in {folder} ({format_list(names)}) is among the {len(glosses)} "
            f"glosses of the labels (such as {format_list(glosses)}): the labels are from another vocabulary"
        )
    warnings = []
    if empty := [format_name(name) for name in found if name not in full]:
        warnings.append(
            f"{format_count(len(empty), 'gloss folder has', 'gloss folders have')} no video: {format_list(empty)}"
        )
    if outside := [entry.name for entry in entries if is_video(Path(entry.name)) and entry.is_file()]:
        warnings.append(
            f"{format_count(len(outside), 'video is', 'videos are')} outside the gloss folders and left out"
        )
    for alike in group_by_case(names):
        warnings.append(
            f"the gloss folders {format_list(alike)} differ only by case: rename one if they are the same sign"
        )
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
    """Find the clips in a folder and its subfolders. Returns an empty list if there are none."""
    try:
        return find_clips(folder)
    except VideoError:
        return []


def assign_classes(names: Sequence[str], glosses: Sequence[str]) -> list[int | None]:
    """Find each name's class: an exact match, or else the only one that differs by case or by the form of accents."""
    exact = {gloss: class_id for class_id, gloss in enumerate(glosses)}
    alike: dict[str, list[int]] = defaultdict(list)
    for class_id, gloss in enumerate(glosses):
        alike[fold_case(gloss)].append(class_id)
    only = {name: class_ids[0] for name, class_ids in alike.items() if len(class_ids) == 1}
    return [exact.get(name, only.get(fold_case(name))) for name in names]


def group_by_case(names: Sequence[str]) -> list[list[str]]:
    """Return groups of names that differ only by case."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[fold_case(name)].append(name)
    return [group for group in alike.values() if len(group) > 1]


def fold_case(name: str) -> str:
    """Return a name without case and with composed accents, since macOS decomposes them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def read_split(path: Path, videos: Path, subset: str | None, labels: Sequence[str]) -> Dataset:
    """Read the clips of a split JSON that are in the folder `videos`."""
    entries = [parse_entries(path, video, entry) for video, entry in read_json(path).items()]
    wanted = [entry for entry in entries if subset in (None, entry.subset)]
    if not wanted:
        has = ", ".join(f"{name} ({count:,})" for name, count in Counter(e.subset for e in entries).items())
        raise VideoError(f"{path} has no video in the subset {subset!r}: it has {has}")
    beyond = max(wanted, key=lambda entry: entry.class_id)
    if beyond.class_id >= len(labels):
        raise LabelsError(
            f"{path} has {beyond.name} in class {beyond.class_id}, but there are labels for only {len(labels)} "
            "classes: they are from another vocabulary. Use a model with the classes of this split, or give the "
            "model's split"
        )
    try:
        present: dict[str, Path] = {}
        for name in sorted(os.listdir(videos), key=lambda n: (n.lower().endswith(".mp4"), n)):  # .mp4 wins
            if is_video(Path(name)):
                present[Path(name).stem] = videos / name
    except OSError as exc:
        raise VideoError(
            f"cannot read the videos of {path} in {videos}: {exc.strerror}. Name their folder with --videos"
        ) from exc
    missing = sorted(entry.name for entry in wanted if entry.name not in present)
    if len(missing) == len(wanted):
        raise VideoError(
            f"none of the {len(wanted):,} videos that {path} lists is in {videos} (such as {missing[0]}.mp4): "
            "name their folder with --videos"
        )
    clips = (
        LabeledClip(present[e.name], e.name, labels[e.class_id], e.class_id, e.subset)
        for e in wanted
        if e.name in present
    )
    return Dataset(tuple(sorted(clips, key=lambda c: c.name)), tuple(labels), missing=tuple(missing), has_subsets=True)


def read_published(
    annotations: Sequence[Path], videos: Path, subset: str | None, labels: Sequence[str] | None
) -> Dataset:
    """Read the clips of a published data set that are in the folder `videos` or its subfolders."""
    content = read_annotations(annotations)
    shown = ", ".join(str(path) for path in annotations)
    wanted = [clip for clip in content.clips if subset in (None, clip.subset)]
    if not content.clips:
        raise VideoError(f"{shown} lists no videos: it is truncated, or not a data set's file")
    if not wanted:
        has = ", ".join(f"{name} ({count:,})" for name, count in Counter(c.subset for c in content.clips).items())
        raise VideoError(f"{shown} has no video in the subset {subset!r}: it has {has}")
    glosses = content.glosses if labels is None else tuple(labels)
    class_ids = dict(zip(content.glosses, assign_classes(content.glosses, glosses), strict=True))
    unknown = sorted({clip.gloss for clip in wanted if class_ids[clip.gloss] is None})
    known = [clip for clip in wanted if class_ids[clip.gloss] is not None]
    if not known:
        raise LabelsError(
            f"none of the {len(unknown):,} glosses in {shown} ({format_list(unknown)}) is among the {len(glosses):,} "
            f"glosses of the labels (such as {format_list(glosses)}): the labels are from another vocabulary"
        )
    files = index_videos(videos, shown)
    found = {clip.name: next((f for f in clip.files if f[0] in files), None) for clip in known}
    missing = sorted(name for name, file in found.items() if file is None)
    if len(missing) == len(known):
        raise VideoError(
            f"none of the {len(known):,} videos that {shown} lists is in {videos} (such as "
            f"{known[0].files[0][0]}.mp4): name their folder with --videos"
        )
    present = [clip for clip in known if found[clip.name] is not None]
    boxes = find_boxes(present, [files[found[clip.name][0]] for clip in present])  # type: ignore[index]
    warnings = []
    if unknown:
        lost = format_count(len(wanted) - len(known), "clip is", "clips are")
        warnings.append(
            f"{format_count(len(unknown), 'gloss is', 'glosses are')} not among the labels, and {lost} left out: "
            f"{format_list(unknown)}"
        )
    if without := sum(clip.lacks_box for clip in present):
        warnings.append(f"{format_count(without, 'clip has', 'clips have')} no signer's box in {shown}")
    if misfits := sum(clip.box_pixels is not None and box is None for clip, box in zip(present, boxes, strict=True)):
        warnings.append(
            f"{format_count(misfits, 'box is', 'boxes are')} outside the frame because the video was scaled: whole "
            "frames are used instead"
        )
    clips = []
    for clip, box in zip(present, boxes, strict=True):
        stem, excerpt = found[clip.name] or clip.files[0]
        class_id = class_ids[clip.gloss]
        assert class_id is not None
        name = format_name(clip.name)
        labeled = LabeledClip(
            files[stem], name, glosses[class_id], class_id, clip.subset, clip.signer_id, signer=box, excerpt=excerpt
        )
        clips.append(labeled)
    return Dataset(
        tuple(sorted(clips, key=lambda c: c.name)),
        glosses,
        missing=tuple(missing),
        unknown=tuple(unknown),
        warnings=tuple(warnings),
        has_subsets=True,
    )


def index_videos(videos: Path, of: str) -> dict[str, Path]:
    """Find the videos in a folder and its subfolders, by name without extension. An .mp4 takes precedence."""
    files: dict[str, Path] = {}
    unread: list[OSError] = []
    for parent, _, names in os.walk(videos, onerror=unread.append):
        for name in sorted(names, key=lambda n: (n.lower().endswith(".mp4"), n)):
            if is_video(Path(name)) and not is_hidden(name):
                files[Path(name).stem] = Path(parent, name)
    if unread and not files:
        raise VideoError(
            f"cannot read the videos of {of} in {videos}: {unread[0].strerror}. Name their folder with --videos"
        )
    return files


def find_boxes(clips: Sequence[Annotation], paths: Sequence[Path]) -> list[SignerBox | None]:
    """Find the box of each clip's signer, in fractions. For boxes in pixels, this opens the clip's first frame."""

    def find_box(clip: Annotation, path: Path) -> SignerBox | None:
        if clip.box_pixels is None:
            return clip.signer
        try:
            with open_frames(path) as video:
                height, width = next(iter(video)).image.shape[:2]
            if clip.box_pixels[2] > width + BOX_SLACK or clip.box_pixels[3] > height + BOX_SLACK:
                return None
            return SignerBox.from_pixels(clip.box_pixels, width, height, source="dataset")
        except AslTritonError:  # recognition will fail too, and report it
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(find_box, clips, paths))


@dataclass(frozen=True)
class SplitEntry:
    """A split's entry for a video."""

    name: str
    class_id: int
    subset: str


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file, which must not be empty."""
    try:
        text = read_at_most(path, MAX_SPLIT_BYTES)
        if text is None:
            raise VideoError(
                f"{path} is larger than {MAX_SPLIT_BYTES // 2**20} MiB, which is too large for a split JSON of WLASL"
            )
        content = json.loads(text.decode("utf-8-sig"))
    except OSError as exc:
        raise VideoError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise VideoError(
            f"{path} is not JSON: name a folder with one subfolder per gloss, or a data set's file (nslt_100.json)"
        ) from exc
    if not isinstance(content, dict) or not content:
        raise VideoError(
            f'{path} is not a split of WLASL, {{"video id": {{"subset": "test", "action": [class, first, last]}}}}: '
            "name a file such as nslt_100.json, WLASL_v0.3.json, MS-ASL's MSASL_test.json or ASL Citizen's test.csv"
        )
    return content


def parse_entries(path: Path, video: str, entry: object) -> SplitEntry:
    """Parse and check one entry of a split."""
    subset = entry.get("subset") if isinstance(entry, dict) else None
    action = entry.get("action") if isinstance(entry, dict) else None
    numbers = isinstance(action, list) and len(action) == 3 and all(type(n) is int for n in action)
    if not isinstance(subset, str) or not isinstance(action, list) or not numbers or action[0] < 0:
        raise VideoError(
            f'{path}: video {video!r} should be {{"subset": "test", "action": [class, first, last]}}, not '
            f"{json.dumps(entry)[:80]}"
        )
    return SplitEntry(format_name(video), action[0], subset)


def format_list(names: Sequence[str]) -> str:
    """Format the first names, with ... if there are more."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def format_count(count: int, one: str, several: str) -> str:
    """Format a number with its noun."""
    return f"{count:,} {one if count == 1 else several}"
