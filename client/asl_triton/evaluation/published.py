"""Reads the annotations of WLASL, ASL Citizen and MS-ASL from the files that their authors publish."""

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.results import SignerBox
from asl_triton.video.excerpt import Excerpt

MAX_FILE_BYTES = 64 * 2**20  # the largest, WLASL_v0.3.json, is 12 MB
YOUTUBE_ID = re.compile(r"(?:v=|youtu\.be/|/embed/|/v/|/shorts/)([\w-]{11})")
SUBSETS = ("train", "val", "test")


@dataclass(frozen=True)
class Annotation:
    """A data set's annotation of a clip.

    `files` has the possible names of its video, without extension, each with the part of that file that is the clip.
    A box is in fractions (`signer`), or in pixels of the original frame: left, top, right, bottom (`box_pixels`).
    """

    name: str
    gloss: str
    subset: str
    files: tuple[tuple[str, Excerpt | None], ...]
    signer_id: str | None = None
    signer: SignerBox | None = None
    box_pixels: tuple[float, float, float, float] | None = None
    lacks_box: bool = False  # although its data set has boxes


@dataclass(frozen=True)
class Annotations:
    """A data set's annotations of all clips. `glosses` are in its own class order."""

    glosses: tuple[str, ...]
    clips: tuple[Annotation, ...]


def find_annotations(data: Path) -> list[Path]:
    """Find the files that describe a data set: `data` itself, or those in the folder `data`."""
    if data.is_dir():
        splits = [data / "splits" / f"{subset}.csv" for subset in SUBSETS]
        splits += [data / f"MSASL_{subset}.json" for subset in SUBSETS]
        return [path for path in splits if path.is_file()]
    if data.suffix.lower() == ".csv" and data.is_file():
        return [data]
    with suppress(OSError), data.open("rb") as file:
        return [data] if file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[") else []
    return []


def find_videos_folder(data: Path) -> Path:
    """Return the default folder of a data set's videos: `videos` in its own folder."""
    if data.is_dir():
        return data / "videos"
    parent = data.parent
    return (parent.parent if parent.name == "splits" else parent) / "videos"


def read_annotations(paths: Sequence[Path]) -> Annotations:
    """Read a data set's files.

    Raises:
        VideoError: a file is not from WLASL, ASL Citizen or MS-ASL, or is damaged.
    """
    parts = [read_citizen(path) if path.suffix.lower() == ".csv" else read_json_list(path) for path in paths]
    glosses = dict.fromkeys(gloss for part in parts for gloss in part.glosses)
    is_citizen = paths[0].suffix.lower() == ".csv"
    return Annotations(
        tuple(sorted(glosses) if is_citizen else glosses),
        tuple(number_doubles(clip for part in parts for clip in part.clips)),
    )


def read_citizen(path: Path) -> Annotations:
    """Read a split of ASL Citizen: columns of participant, video file and gloss. Classes are the sorted glosses."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except OSError as exc:
        raise VideoError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, csv.Error) as exc:
        raise VideoError(f"{path} is not a CSV file of ASL Citizen: {exc}") from exc
    if len(rows) < 2 or len(rows[0]) < 3 or rows[0][2].strip().lower() != "gloss":
        raise VideoError(
            f"{path} is not a split of ASL Citizen: its columns must be participant, video file, gloss, in this order"
        )
    clips = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) < 3 or not row[1].strip() or not row[2].strip():
            raise VideoError(f"{path}, line {number}: expected participant, video file and gloss, not {row[:3]}")
        participant, file_name, gloss = (value.strip() for value in row[:3])
        stem = file_name.rpartition(".")[0] or file_name
        clips.append(Annotation(file_name, gloss, path.stem, ((stem, None),), signer_id=participant or None))
    return Annotations(tuple(sorted({clip.gloss for clip in clips})), tuple(clips))


def read_json_list(path: Path) -> Annotations:
    """Read WLASL_v0.3.json or a split of MS-ASL, which are both lists."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise VideoError(
                f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB, which is too large for a data set of signs"
            )
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise VideoError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise VideoError(f"{path} is not JSON: it is truncated, or not a JSON file at all ({exc})") from exc
    first = entries[0] if isinstance(entries, list) and entries else None
    if isinstance(first, dict) and "instances" in first:
        return parse_wlasl(path, entries)
    if isinstance(first, dict) and "url" in first and "label" in first:
        return parse_msasl(path, entries)
    raise VideoError(
        f"{path} is neither WLASL's list of glosses (WLASL_v0.3.json) nor a split of MS-ASL (MSASL_test.json)"
    )


def parse_wlasl(path: Path, entries: list[Any]) -> Annotations:
    """Parse WLASL_v0.3.json: a list of glosses in class order, each with its instances.

    A video named by its id was already cut by WLASL's preprocessing. In a video named by its YouTube id, the instance
    is from `frame_start` to `frame_end`, counted from 1 and inclusive; -1 is the end (start_kit/preprocess.py).
    """
    glosses, clips = [], []
    for entry in entries:
        try:
            gloss = str(entry["gloss"])
            glosses.append(gloss)
            for instance in entry["instances"]:
                clips.append(parse_wlasl_instance(gloss, instance))
        except (AslTritonError, KeyError, TypeError, ValueError) as exc:
            raise VideoError(f"{path}: {describe_fault(exc)} in {json.dumps(entry)[:120]}") from exc
    return Annotations(tuple(glosses), tuple(clips))


def parse_wlasl_instance(gloss: str, instance: dict[str, Any]) -> Annotation:
    """Parse one instance of a gloss."""
    name = str(instance["video_id"])
    files: list[tuple[str, Excerpt | None]] = [(name, None)]
    if found := YOUTUBE_ID.search(str(instance.get("url", ""))):
        first, last = int(instance.get("frame_start", 1)), int(instance.get("frame_end", -1))
        is_whole = first <= 1 and last <= 0
        excerpt = None if is_whole else Excerpt(max(first, 1) - 1, last - 1 if last > 0 else None)
        files.append((found[1], excerpt))
    box = parse_numbers(instance.get("bbox"))
    is_box = box is not None and box[0] < box[2] and box[1] < box[3]
    signer_id = instance.get("signer_id")
    return Annotation(
        name,
        gloss,
        str(instance["split"]),
        tuple(files),
        signer_id=None if signer_id in (None, -1) else str(signer_id),
        box_pixels=box if is_box else None,
        lacks_box=not is_box,
    )


def parse_msasl(path: Path, entries: list[Any]) -> Annotations:
    """Parse a split of MS-ASL: a list of signs in YouTube videos, each from `start_time` to `end_time` in seconds.

    Boxes are top, left, bottom and right, as fractions of the frame. A video is named by its YouTube id or, if it was
    already cut, as in bsl1k's misc/msasl/download_msasl.py.
    """
    glosses: dict[int, str] = {}
    clips = []
    match = re.search("|".join(SUBSETS), path.stem.lower())
    subset = match[0] if match else path.stem
    for entry in entries:
        try:
            youtube_id = YOUTUBE_ID.search(str(entry["url"]))
            start_s, end_s = float(entry["start_time"]), float(entry["end_time"])
            gloss = str(entry.get("text", entry.get("clean_text")))
            glosses.setdefault(int(entry["label"]), gloss)
            if youtube_id is None:
                continue
            cut = f"{youtube_id[1]}_{int(start_s):06d}_{int(end_s):06d}"
            signer, box = None, parse_numbers(entry.get("box"))
            with suppress(AslTritonError):
                signer = box and SignerBox(box[1], box[0], box[3], box[2], source="dataset")
            signer_id = entry.get("signer_id")
            clips.append(
                Annotation(
                    f"{youtube_id[1]}_{start_s:g}_{end_s:g}",
                    gloss,
                    subset,
                    ((cut, None), (youtube_id[1], Excerpt(start_s=start_s, end_s=end_s))),
                    signer_id=None if signer_id in (None, -1) else str(signer_id),
                    signer=signer,
                    lacks_box=signer is None,
                )
            )
        except (AslTritonError, AttributeError, KeyError, TypeError, ValueError) as exc:
            raise VideoError(f"{path}: {describe_fault(exc)} in {json.dumps(entry)[:120]}") from exc
    return Annotations(tuple(glosses[label] for label in sorted(glosses)), tuple(clips))


def parse_numbers(values: object) -> tuple[float, float, float, float] | None:
    """Parse a list of four finite numbers. Returns None for anything else."""
    if not isinstance(values, list) or len(values) != 4:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        return None
    return float(values[0]), float(values[1]), float(values[2]), float(values[3])


def describe_fault(exc: Exception) -> str:
    """Describe what is wrong with an entry."""
    return f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)


def number_doubles(clips: Iterable[Annotation]) -> Iterable[Annotation]:
    """Yield the clips with unique names. The second clip of the same name gets '#2'."""
    seen: dict[str, int] = {}
    for clip in clips:
        seen[clip.name] = seen.get(clip.name, 0) + 1
        yield clip if seen[clip.name] == 1 else replace(clip, name=f"{clip.name}#{seen[clip.name]}")
