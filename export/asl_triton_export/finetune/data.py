"""Chooses training and held-out clips. Reads each one up front, so that training does not fail on a damaged clip."""

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

LIMITS = Limits(max_frames=3_000)  # for a clip of one sign; held-out clips are read into memory whole
UNTRIMMED_LIMITS = Limits()  # for a video of which the clip is a part
LEAST = 2  # clips per gloss: one to train on, one held out
DECODERS = 8
# Ten new signs of the demo signer reach a top-1 of 94.5 % from 12 clips each, every clip by a different signer.
ADVISED_CLIPS = 12  # per gloss
ADVISED_SIGNERS = 5  # per gloss: four remain when one is held out
TEACH_CLIPS = 3  # per sign, for `asl-triton teach`

OnStep = Callable[[str, int, int], None]  # description, done, total


@dataclass(frozen=True)
class Clips:
    """Training and held-out clips. `glosses` are in class order."""

    glosses: tuple[str, ...]
    train: tuple[LabeledClip, ...]
    held_out: tuple[LabeledClip, ...]
    broken: tuple[str, ...]  # one sentence per unreadable clip
    missing: tuple[str, ...]  # videos named by the split that do not exist
    warnings: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the clips, their labels, and the split."""
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
    """Read `data` and every clip in it, and split the clips into training and held-out ones.

    In a folder, a random `share` of each gloss's clips is held out, at least one. A split JSON holds out its `val`
    subset, or a random share if it has none. Clips of `test` are never opened. Copies of a clip stay on the same side.

    Every gloss needs training clips, with two exceptions: `keep_known` lets the glosses in `known` go without, and puts
    them first if there are no `labels`; `drop_empty` drops glosses without clips.

    Raises:
        VideoError: there are no clips, or a gloss of a folder has fewer than two readable clips.
        LabelsError: `labels` are missing or belong to another vocabulary, or glosses have no clips.
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
            f"{format_count(len(leaked), 'held-out clip is a copy', 'held-out clips are copies')} of training clips "
            f"and will be ignored: {format_list(leaked)}"
        )
    if not held_out:
        if dataset.has_subsets:
            warnings.append(f"{data} has no readable clip in 'val', so a share of 'train' is held out instead")
        train, held_out = hold_out(train, share, seed, copies)
    if not train or not held_out:
        why = f" ({next(iter(broken.values()))})" if broken else ""
        raise VideoError(
            f"{data} has {len(good)} readable clips for training{why}: at least two of the same gloss are needed, one "
            "to train on and one to hold out"
        )
    if labels is None and not keep_known:
        warnings.append(describe_vocabulary(dataset.glosses, known))
    warnings += advise_more_clips(train, held_out)
    return Clips(
        dataset.glosses, tuple(train), tuple(held_out), tuple(broken.values()), dataset.missing, tuple(warnings)
    )


def relabel(dataset: Dataset, glosses: Sequence[str]) -> Dataset:
    """Map clips to the classes of `glosses`, and drop those of other glosses."""
    class_ids = dict(zip(dataset.glosses, assign_classes(dataset.glosses, glosses), strict=True))
    clips = [
        replace(clip, gloss=glosses[class_id], class_id=class_id)
        for clip in dataset.clips
        if (class_id := class_ids[clip.gloss]) is not None
    ]
    return replace(dataset, clips=tuple(clips), glosses=tuple(glosses))


def find_learned(clips: Iterable[LabeledClip]) -> set[str]:
    """Return the glosses that have training clips."""
    return {clip.gloss for clip in clips if clip.subset not in ("val", "test")}


def refuse_empty_glosses(dataset: Dataset, learned: set[str], known: Sequence[str], kept: set[str]) -> None:
    """Check that every gloss outside `kept` has clips, since a network quickly unlearns glosses without any.

    Raises:
        LabelsError: some have none.
    """
    empty = [gloss for gloss in dataset.glosses if gloss not in learned and gloss not in kept]
    if empty:
        keep = "" if kept or not set(empty) <= set(known) else ", or keep what the checkpoint knows with --keep-known"
        raise LabelsError(
            f"{len(empty):,} of {format_count(len(dataset.glosses), 'gloss', 'glosses')} "
            f"{'has' if len(empty) == 1 else 'have'} no clip to learn from: {format_list(empty)}. Training without "
            "clips of a gloss makes the network answer other glosses instead: add clips, drop these glosses with "
            f"--drop-empty{keep}"
        )


def describe_vocabulary(glosses: Sequence[str], known: Sequence[str]) -> str:
    """Describe what the new model will know, and what it will not."""
    forgotten = [
        gloss for gloss, class_id in zip(known, assign_classes(known, glosses), strict=True) if class_id is None
    ]
    rest = (
        f". It will not know {len(forgotten):,} others that the checkpoint knows ({format_list(forgotten)}): use "
        "--keep-known to keep them"
        if forgotten
        else ""
    )
    return (
        f"the new model will know only {format_count(len(glosses), 'gloss', 'glosses')}, the sub-folders of the data: "
        f"{format_list(glosses)}{rest}"
    )


def describe_copies(clips: Sequence[LabeledClip], copies: Mapping[str, str]) -> list[str]:
    """List clips that are copies of others, and copies that have different glosses."""
    glosses = {clip.name: clip.gloss for clip in clips}
    pairs = [(name, first) for name, first in copies.items() if name != first]
    torn = [f"{name} and {first}" for name, first in pairs if glosses[name] != glosses[first]]
    warnings = []
    if pairs:
        warnings.append(
            f"{format_count(len(pairs), 'clip is a copy', 'clips are copies')} of another and will stay on the same "
            f"side of the split: {format_list([f'{name} of {first}' for name, first in pairs])}"
        )
    if torn:
        warnings.append(
            f"the same clip has two glosses, so neither copy is held out: {format_list(torn)}. Remove one of them"
        )
    return warnings


def advise_more_clips(train: Sequence[LabeledClip], held_out: Sequence[LabeledClip]) -> list[str]:
    """Recommend a number of clips and signers for glosses that have fewer."""
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
        f"we recommend at least {ADVISED_CLIPS} clips of each gloss by at least {ADVISED_SIGNERS} signers; {few}. To "
        f"add signs from {TEACH_CLIPS} clips each without training, use asl-triton teach"
    ]


@contextmanager
def read_clip(clip: LabeledClip, preset: Preset | None = None) -> Iterator[Iterator[Frame]]:
    """Open a clip, or the excerpt of a longer video that is the clip, and iterate over its frames inside the block.

    With a `preset`, skip the frames that it does not use; see `choose_frame_step`.

    Raises:
        VideoError: the clip is unreadable, or too long for one sign.
    """
    with open_frames(clip.path, LIMITS if clip.excerpt is None else UNTRIMMED_LIMITS, clip.name) as video:
        frames = iter(video) if clip.excerpt is None else cut_excerpt(video, clip.excerpt, clip.name)
        yield frames if preset is None else islice(frames, 0, None, choose_frame_step(preset, video.frame_rate))


def read_clips(clips: Sequence[LabeledClip], on_step: OnStep) -> tuple[dict[str, str], dict[str, Thumbnails]]:
    """Decode every clip to its end. Returns, by name, why clips are unreadable, and the thumbnails of the others."""

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
    """Check that each gloss of a folder has enough clips.

    Raises:
        VideoError: a gloss has fewer than two readable clips, not counting copies.
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
            f"{folder}: each gloss needs {LEAST} readable clips, one to train on and one to hold out, but "
            f"{format_list(described)}{why}. Add clips, or move the folder away"
        )


def hold_out(
    clips: Sequence[LabeledClip], share: float, seed: int, copies: Mapping[str, str] | None = None
) -> tuple[list[LabeledClip], list[LabeledClip]]:
    """Hold out a random share of each gloss's clips, at least one if there are two. Returns (training, held out).

    `copies` maps each clip to the first clip that it is a copy of, or to itself. Copies stay together; copies that have
    different glosses are never held out.
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
