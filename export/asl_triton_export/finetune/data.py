"""Chooses training and held-out clips, and reads each once, so that none fails later."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from asl_triton.decoding.factory import open_frames
from asl_triton.errors import AslTritonError, LabelsError, VideoError
from asl_triton.evaluation.dataset import (
    Dataset,
    LabeledClip,
    assign_classes,
    format_count,
    format_list,
    read_dataset,
)
from asl_triton.presets import Preset
from asl_triton.video.discovery import format_name, is_hidden
from asl_triton.video.excerpt import cut_excerpt
from asl_triton.video.preprocessing import choose_frame_step
from asl_triton.video.reader import Frame, Limits
from asl_triton_export.finetune.duplicates import Thumbnails, find_copies, make_thumbnails

LIMITS = Limits(max_frames=3_000)  # of a clip of one sign; a held-out clip is in memory as a whole
UNTRIMMED_LIMITS = Limits()  # of a video that a clip is a part of
LEAST = 2  # clips per gloss: one to train on, one held out
DECODERS = 8
# Ten new signs of the demo signer reach a top-1 of 94.5 % from 12 clips each, every clip by another signer (README).
ADVISED_CLIPS = 12  # per gloss
ADVISED_SIGNERS = 5  # per gloss: one of them can be held out, and four remain
TEACH_CLIPS = 3  # that `asl-triton teach` needs of a sign

OnStep = Callable[[str, int, int], None]  # what is going on, done, total


@dataclass(frozen=True)
class Clips:
    """Training and held-out clips. `glosses` are in class order."""

    glosses: tuple[str, ...]
    train: tuple[LabeledClip, ...]
    held_out: tuple[LabeledClip, ...]
    broken: tuple[str, ...]  # a sentence for each clip that cannot be read
    missing: tuple[str, ...]  # videos that the split names and that do not exist
    warnings: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Equal for the same clips with the same labels and the same split."""
        lines = [
            f"{c.name}\t{c.class_id}" + (f"\t{c.signer}\t{c.excerpt}" if c.signer or c.excerpt else "")
            for part in (self.train, self.held_out)
            for c in part
        ]
        return hashlib.sha256("\n".join((*lines, str(len(self.train)))).encode()).hexdigest()


def choose_clips(
    data: Path,
    videos: Path | None,
    labels: Sequence[str] | None,
    share: float,
    seed: int,
    on_step: OnStep,
    *,
    known: Sequence[str] = (),
    keep_known: bool = False,
    drop_empty: bool = False,
) -> Clips:
    """Read `data` and every clip in it.

    Of a folder, a random share of each gloss's clips is held out, at least one; of a split JSON, its `val` subset, or
    such a share where it has none. Clips of `test` are never opened. Copies of a clip are on one side of the split.

    Every gloss needs clips to learn from. With `keep_known`, the glosses in `known` need none, and are added in front
    if `labels` are not given; with `drop_empty`, glosses without clips are left out.

    Raises:
        VideoError: there are no clips, or a folder has fewer than two readable clips of a gloss.
        LabelsError: `labels` are needed and not given, or are of another vocabulary, or glosses have no clips.
    """
    dataset = read_dataset(data, videos=videos, labels=labels)
    if keep_known and labels is None:
        named = assign_classes(dataset.glosses, known)
        new = [gloss for gloss, class_id in zip(dataset.glosses, named, strict=True) if class_id is None]
        dataset = relabel(dataset, (*known, *new))
    kept = set(known) if keep_known else set()
    if not drop_empty:
        refuse_empty_glosses(dataset, find_learned(dataset.clips), known, kept)
    clips = [clip for clip in dataset.clips if clip.subset != "test"]
    broken, thumbnails = read_clips(clips, on_step)
    if drop_empty:
        learned = find_learned(clip for clip in clips if clip.name not in broken)
        dataset = relabel(dataset, [gloss for gloss in dataset.glosses if gloss in learned or gloss in kept])
        clips = [clip for clip in dataset.clips if clip.subset != "test"]
    good = [clip for clip in clips if clip.name not in broken]
    copies = {
        clip.name: good[first].name
        for clip, first in zip(good, find_copies([thumbnails[clip.name] for clip in good]), strict=True)
    }
    warnings = [*dataset.warnings, *describe_copies(good, copies)]
    if not dataset.has_subsets:
        refuse_poor_glosses(data, dataset, clips, good, broken, copies, drop_empty)
    refuse_empty_glosses(dataset, find_learned(good), known, kept)
    train = [clip for clip in good if clip.subset != "val"]
    held_out = [clip for clip in good if clip.subset == "val"]
    trained_on = {copies[clip.name] for clip in train}
    if leaked := [clip.name for clip in held_out if copies[clip.name] in trained_on]:
        held_out = [clip for clip in held_out if copies[clip.name] not in trained_on]
        warnings.append(
            f"{format_count(len(leaked), 'held-out clip is a copy', 'held-out clips are copies')} of training clips, "
            f"and left out: {format_list(leaked)}"
        )
    if not held_out:
        if dataset.has_subsets:
            warnings.append(f"{data} has no clip in 'val' that can be read: a share of 'train' is held out instead")
        train, held_out = hold_out(train, share, seed, copies)
    if not train or not held_out:
        why = f" ({next(iter(broken.values()))})" if broken else ""
        raise VideoError(
            f"{data} has {len(good)} clips for training that can be read{why}: there must be one to learn from and "
            "another of the same gloss to be held out"
        )
    if labels is None and not keep_known:
        warnings.append(describe_vocabulary(dataset.glosses, known))
    warnings += advise_more_clips(train, held_out)
    return Clips(
        dataset.glosses, tuple(train), tuple(held_out), tuple(broken.values()), dataset.missing, tuple(warnings)
    )


def relabel(dataset: Dataset, glosses: Sequence[str]) -> Dataset:
    """The same clips in the classes of `glosses`, those of other glosses left out."""
    class_ids = dict(zip(dataset.glosses, assign_classes(dataset.glosses, glosses), strict=True))
    clips = [
        replace(clip, gloss=glosses[class_id], class_id=class_id)
        for clip in dataset.clips
        if (class_id := class_ids[clip.gloss]) is not None
    ]
    return replace(dataset, clips=tuple(clips), glosses=tuple(glosses))


def find_learned(clips: Iterable[LabeledClip]) -> set[str]:
    """The glosses with clips to learn from."""
    return {clip.gloss for clip in clips if clip.subset not in ("val", "test")}


def refuse_empty_glosses(dataset: Dataset, learned: set[str], known: Sequence[str], kept: set[str]) -> None:
    """Refuse glosses without clips: a network would soon answer other glosses in their place.

    Raises:
        LabelsError: there are such glosses, and they are not in `kept`.
    """
    empty = [gloss for gloss in dataset.glosses if gloss not in learned and gloss not in kept]
    if empty:
        keep = "" if kept or not set(empty) <= set(known) else ", or keep what the checkpoint knows with --keep-known"
        raise LabelsError(
            f"{len(empty):,} of {format_count(len(dataset.glosses), 'gloss', 'glosses')} "
            f"{'has' if len(empty) == 1 else 'have'} no clip to learn from: {format_list(empty)}. A network trained "
            "without them answers other glosses in their place: add clips, leave these glosses out with --drop-empty"
            f"{keep}"
        )


def describe_vocabulary(glosses: Sequence[str], known: Sequence[str]) -> str:
    """Say what the new model will know, and what it will not."""
    forgotten = [
        gloss for gloss, class_id in zip(known, assign_classes(known, glosses), strict=True) if class_id is None
    ]
    rest = (
        f". It will not know {len(forgotten):,} others of the checkpoint ({format_list(forgotten)}): --keep-known "
        "keeps them"
        if forgotten
        else ""
    )
    return (
        f"the new model will know only {format_count(len(glosses), 'gloss', 'glosses')}, the sub-folders of the data: "
        f"{format_list(glosses)}{rest}"
    )


def describe_copies(clips: Sequence[LabeledClip], copies: Mapping[str, str]) -> list[str]:
    """Say which clips are copies of others, and which of these have another gloss."""
    glosses = {clip.name: clip.gloss for clip in clips}
    pairs = [(name, first) for name, first in copies.items() if name != first]
    torn = [f"{name} and {first}" for name, first in pairs if glosses[name] != glosses[first]]
    warnings = []
    if pairs:
        warnings.append(
            f"{format_count(len(pairs), 'clip is a copy', 'clips are copies')} of another, and on its side of the "
            f"split: {format_list([f'{name} of {first}' for name, first in pairs])}"
        )
    if torn:
        warnings.append(f"the same clip has two glosses, so neither is held out: {format_list(torn)}. Remove one")
    return warnings


def advise_more_clips(train: Sequence[LabeledClip], held_out: Sequence[LabeledClip]) -> list[str]:
    """Say how many clips and signers are advisable, where there are fewer."""
    counts = Counter(clip.gloss for clip in (*train, *held_out))
    signers: dict[str, set[str]] = defaultdict(set)
    for clip in (*train, *held_out):
        if clip.signer_id is not None:
            signers[clip.gloss].add(clip.signer_id)
    few_clips = {gloss for gloss, count in counts.items() if count < ADVISED_CLIPS}
    few_signers = {gloss for gloss, names in signers.items() if len(names) < ADVISED_SIGNERS}
    if not few_clips | few_signers:
        return []
    few = format_list([f"{gloss!r} has {counts[gloss]}" for gloss in sorted(few_clips | few_signers)])
    return [
        f"{ADVISED_CLIPS} clips or more of each gloss are advisable, by {ADVISED_SIGNERS} signers or more; {few}. To "
        f"learn signs from {TEACH_CLIPS} clips each, without training, use asl-triton teach"
    ]


@contextmanager
def read_clip(clip: LabeledClip, preset: Preset | None = None) -> Iterator[Iterator[Frame]]:
    """The frames of a clip, or of the part of a longer video that is the clip; the video is open for the block.

    With a `preset`, only the frames that it takes, see `choose_frame_step`.

    Raises:
        VideoError: it cannot be read, or is too long for a clip of one sign.
    """
    with open_frames(clip.path, LIMITS if clip.excerpt is None else UNTRIMMED_LIMITS, clip.name) as video:
        frames = iter(video) if clip.excerpt is None else cut_excerpt(video, clip.excerpt, clip.name)
        yield frames if preset is None else islice(frames, 0, None, choose_frame_step(preset, video.frame_rate))


def read_clips(clips: Sequence[LabeledClip], on_step: OnStep) -> tuple[dict[str, str], dict[str, Thumbnails]]:
    """Decode every clip to its end: why some cannot be read, and thumbnails of the others, by their names."""

    def read(clip: LabeledClip) -> Thumbnails | str:
        try:
            with read_clip(clip) as frames:
                return make_thumbnails(frames)
        except AslTritonError as exc:
            return str(exc)

    broken, thumbnails = {}, {}
    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        for done, (clip, result) in enumerate(zip(clips, pool.map(read, clips), strict=True), start=1):
            if isinstance(result, str):
                broken[clip.name] = result
            else:
                thumbnails[clip.name] = result
            on_step("Reading the clips", done, len(clips))
    return broken, thumbnails


def refuse_poor_glosses(
    folder: Path,
    dataset: Dataset,
    found: Iterable[LabeledClip],
    good: Sequence[LabeledClip],
    broken: dict[str, str],
    copies: Mapping[str, str],
    drop_empty: bool,
) -> None:
    """Refuse a folder whose glosses cannot all be learned.

    Raises:
        VideoError: a gloss has fewer than two readable clips that are not copies of one another.
    """
    clips = Counter(clip.gloss for clip in good)
    counts = Counter(gloss for gloss, _ in {(clip.gloss, copies[clip.name]) for clip in good})
    full = {clip.name.partition("/")[0] for clip in found} | set(dataset.unknown)
    names = {format_name(p.name) for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name)}
    poor = {gloss: counts[gloss] for gloss in {clip.gloss for clip in found} if counts[gloss] < LEAST}
    if not drop_empty:
        poor |= dict.fromkeys(names - full, 0)
    if poor:
        why = f" ({next(iter(broken.values()))})" if broken else ""
        described = [
            f"{gloss!r} has {count}" + (f" and {clips[gloss] - count} copies of it" if clips[gloss] > count else "")
            for gloss, count in sorted(poor.items())
        ]
        raise VideoError(
            f"{folder}: each gloss needs {LEAST} clips that can be read, one to learn from and one held out, and "
            f"{format_list(described)}{why}. Add clips, or move the folder away"
        )


def hold_out(
    clips: Sequence[LabeledClip], share: float, seed: int, copies: Mapping[str, str] | None = None
) -> tuple[list[LabeledClip], list[LabeledClip]]:
    """Hold out a random share of each gloss's clips, at least one where there are two: (training, held out).

    `copies` names for each clip the first that it is a copy of, or itself. Copies stay together; those of clips with
    another gloss are never held out.
    """
    copies = copies or {}
    glosses: dict[str, set[int]] = defaultdict(set)
    by_class: dict[int, dict[str, list[LabeledClip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        first = copies.get(clip.name, clip.name)
        glosses[first].add(clip.class_id)
        by_class[clip.class_id][first].append(clip)
    chosen: set[str] = set()
    for class_id, groups in by_class.items():
        alike = list(groups)
        count = min(max(1, round(share * len(alike))), len(alike) - 1)
        order = np.random.default_rng((seed, class_id)).permutation(len(alike))
        free = [alike[place] for place in order if len(glosses[alike[place]]) == 1]
        chosen |= {clip.name for first in free[:count] for clip in groups[first]}
    return [c for c in clips if c.name not in chosen], [c for c in clips if c.name in chosen]
