"""Chooses training and held-out clips, and reads each once, so that none fails later."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from asl_triton.decoding.factory import open_frames
from asl_triton.errors import AslTritonError, VideoError
from asl_triton.evaluation.dataset import Dataset, LabeledClip, format_list, read_dataset
from asl_triton.presets import Preset
from asl_triton.video.discovery import format_name, is_hidden
from asl_triton.video.excerpt import cut_excerpt
from asl_triton.video.preprocessing import choose_frame_step
from asl_triton.video.reader import Frame, Limits

LIMITS = Limits(max_frames=3_000)  # of a clip of one sign; a held-out clip is in memory as a whole
UNTRIMMED_LIMITS = Limits()  # of a video that a clip is a part of
LEAST = 2  # clips per gloss: one to train on, one held out
DECODERS = 8

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
) -> Clips:
    """Read `data` and every clip in it.

    Of a folder, a random share of each gloss's clips is held out, at least one; of a split JSON, its `val` subset, or
    such a share where it has none. Clips of `test` are never opened.

    Raises:
        VideoError: there are no clips, or a folder has fewer than two readable clips of a gloss.
        LabelsError: `labels` are needed and not given, or are of another vocabulary.
    """
    dataset = read_dataset(data, videos=videos, labels=labels)
    clips = [clip for clip in dataset.clips if clip.subset != "test"]
    broken = find_broken(clips, on_step)
    good = [clip for clip in clips if clip.name not in broken]
    warnings = list(dataset.warnings)
    if not dataset.has_subsets:
        refuse_poor_glosses(data, dataset, clips, good, broken)
    train = [clip for clip in good if clip.subset != "val"]
    held_out = [clip for clip in good if clip.subset == "val"]
    if not held_out:
        if dataset.has_subsets:
            warnings.append(f"{data} has no clip in 'val' that can be read: a share of 'train' is held out instead")
        train, held_out = hold_out(train, share, seed)
    if not train or not held_out:
        why = f" ({next(iter(broken.values()))})" if broken else ""
        raise VideoError(
            f"{data} has {len(good)} clips for training that can be read{why}: there must be one to learn from and "
            "another of the same gloss to be held out"
        )
    if unseen := sorted({c.gloss for c in held_out} - {c.gloss for c in train}):
        warnings.append(f"{len(unseen)} glosses are held out and have no clip to learn from: {format_list(unseen)}")
    return Clips(
        dataset.glosses, tuple(train), tuple(held_out), tuple(broken.values()), dataset.missing, tuple(warnings)
    )


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


def find_broken(clips: Sequence[LabeledClip], on_step: OnStep) -> dict[str, str]:
    """Decode every clip to its end; returns the names of those that cannot be read, and why."""

    def fault(clip: LabeledClip) -> str | None:
        try:
            with read_clip(clip) as frames:
                for _ in frames:
                    pass
        except AslTritonError as exc:
            return str(exc)
        return None

    broken = {}
    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        for done, (clip, why) in enumerate(zip(clips, pool.map(fault, clips), strict=True), start=1):
            if why is not None:
                broken[clip.name] = why
            on_step("Reading the clips", done, len(clips))
    return broken


def refuse_poor_glosses(
    folder: Path, dataset: Dataset, found: Iterable[LabeledClip], good: Iterable[LabeledClip], broken: dict[str, str]
) -> None:
    """Refuse a folder whose glosses cannot all be learned.

    Raises:
        VideoError: a gloss has fewer than two readable clips.
    """
    counts = Counter(clip.gloss for clip in good)
    full = {clip.name.partition("/")[0] for clip in found} | set(dataset.unknown)
    names = {format_name(p.name) for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name)}
    poor = {gloss: counts[gloss] for gloss in {clip.gloss for clip in found} if counts[gloss] < LEAST}
    poor |= dict.fromkeys(names - full, 0)
    if poor:
        why = f" ({next(iter(broken.values()))})" if broken else ""
        raise VideoError(
            f"{folder}: each gloss needs {LEAST} clips that can be read, one to learn from and one held out, and "
            f"{format_list([f'{gloss!r} has {count}' for gloss, count in sorted(poor.items())])}{why}. Add clips, or "
            "move the folder away"
        )


def hold_out(clips: Sequence[LabeledClip], share: float, seed: int) -> tuple[list[LabeledClip], list[LabeledClip]]:
    """Hold out a random share of each gloss's clips, at least one where there are two: (training, held out)."""
    by_class: dict[int, list[LabeledClip]] = defaultdict(list)
    for clip in clips:
        by_class[clip.class_id].append(clip)
    chosen: set[str] = set()
    for class_id, alike in by_class.items():
        count = min(max(1, round(share * len(alike))), len(alike) - 1)
        order = np.random.default_rng((seed, class_id)).permutation(len(alike))
        chosen |= {alike[place].name for place in order[:count]}
    return [c for c in clips if c.name not in chosen], [c for c in clips if c.name in chosen]
