"""Scores a model's answers to labeled clips: the rank of the right gloss, and which glosses rank higher."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asl_triton.batch.workers import recognize_many
from asl_triton.errors import AslTritonError, LabelsError
from asl_triton.evaluation.dataset import LabeledClip
from asl_triton.files import read_at_most
from asl_triton.labels import MAX_LABELS_BYTES
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure, Outcome, Recognition

BEST_KEPT = 10  # of a clip's ranking, since all of it would be clips x classes


@dataclass(frozen=True)
class ClassMapping:
    """The classes to score: each gloss of a model, with look-alike glosses merged into one.

    `names[of_gloss[g]]` is the class of gloss g, in the model's class order.
    """

    names: tuple[str, ...]
    of_gloss: tuple[int, ...]

    @classmethod
    def of(cls, labels: Sequence[str], merged: Sequence[Sequence[str]] = ()) -> "ClassMapping":
        """Build the classes of a model. Each group in `merged` becomes one class, named after its glosses.

        Raises:
            LabelsError: a gloss in a group is not among the labels, or is in another group too.
        """
        names = dict(zip(labels, labels, strict=True))
        grouped: set[str] = set()
        for group in merged:
            for gloss in group:
                if gloss not in names:
                    raise LabelsError(
                        f"cannot merge {gloss!r} because the model does not know it: "
                        "`asl-triton models --labels` lists its glosses"
                    )
                if gloss in grouped:
                    raise LabelsError(f"{gloss!r} is merged twice: put all glosses that look alike on one line")
                grouped.add(gloss)
                names[gloss] = " / ".join(group)
        distinct = tuple(dict.fromkeys(names.values()))
        place = {name: class_id for class_id, name in enumerate(distinct)}
        return cls(distinct, tuple(place[name] for name in names.values()))


@dataclass(frozen=True)
class ScoredClip:
    """The answer to one clip. `truth` and `best` (best first, up to 10) are indices into `ClassMapping.names`.

    `rank` is the rank of the truth among all classes, 1 being the best. A merged class ranks like its best gloss.
    `confidence` is that of the best gloss, as the preset scores it. `signer_id` is the data set's name for the signer.
    """

    video: str
    truth: int
    rank: int
    best: tuple[int, ...]
    confidence: float
    signer_id: str | None = None


@dataclass(frozen=True)
class ScoringRun:
    """The answers to labeled clips, sorted by name. `stopped` says why the run ended early, if it did."""

    answers: tuple[ScoredClip, ...]
    failures: tuple[Failure, ...]
    not_tried: int = 0
    stopped: str | None = None


def read_merge(path: Path) -> list[list[str]]:
    """Read groups of glosses that look alike: one comma-separated group per line. Empty lines are skipped.

    Raises:
        LabelsError: the file could not be read, or a line has fewer than two glosses.
    """
    try:
        content = read_at_most(path, MAX_LABELS_BYTES)
        if content is None:
            raise LabelsError(
                f"{path} (--merge) is larger than {MAX_LABELS_BYTES // 2**20} MiB, too large for groups of glosses"
            )
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as exc:
        raise LabelsError(f"cannot read {path} (--merge): {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise LabelsError(
            f"{path} (--merge) is not UTF-8 text: write one comma-separated group of glosses per line"
        ) from exc
    groups = []
    for number, line in enumerate(lines, start=1):
        glosses = list(dict.fromkeys(gloss.strip() for gloss in line.split(",") if gloss.strip()))
        if len(glosses) == 1:
            raise LabelsError(
                f"{path}, line {number}: {glosses[0]!r} is alone; add glosses that look like it, separated by commas"
            )
        groups += [glosses] if glosses else []
    if not groups:
        raise LabelsError(f"{path} (--merge) is empty: write one comma-separated group of glosses per line")
    return groups


def score(clip: LabeledClip, recognition: Recognition, classes: ClassMapping) -> ScoredClip:
    """Score a recognition that ranks every gloss."""
    ranked = dict.fromkeys(classes.of_gloss[p.class_id] for p in recognition.predictions)
    truth = classes.of_gloss[clip.class_id]
    order = tuple(ranked)
    return ScoredClip(
        clip.name, truth, order.index(truth) + 1, order[:BEST_KEPT], recognition.confidence, clip.signer_id
    )


def score_clips(
    make_recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[LabeledClip],
    classes: ClassMapping,
    *,
    clips_at_once: int,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> ScoringRun:
    """Recognize labeled clips, `clips_at_once` at a time. `on_outcome` gets each outcome, with only its best gloss.

    If a clip fails, its outcome is a `Failure`. If the server goes down or the user presses Ctrl-C, the answers so far
    are returned.

    Raises:
        AslTritonError: the server or its model is unusable, or the server goes down before the first answer.
        KeyboardInterrupt: Ctrl-C before the first answer.
    """
    answers: list[ScoredClip] = []
    failures: list[Failure] = []

    def keep(clip: LabeledClip, outcome: Outcome) -> None:
        if isinstance(outcome, Recognition):
            answers.append(score(clip, outcome, classes))
            on_outcome(dataclasses.replace(outcome, predictions=outcome.predictions[:1]))
        else:
            failures.append(outcome)
            on_outcome(outcome)

    whole_ranking = Ranking(top_k=len(classes.of_gloss))
    stopped = None
    try:
        asyncio.run(recognize_many(make_recognizer, clips, whole_ranking, clips_at_once, keep))
    except (AslTritonError, KeyboardInterrupt) as exc:
        if not answers:
            raise
        stopped = str(exc) or "interrupted"
    return ScoringRun(
        tuple(sorted(answers, key=lambda known: known.video)),
        tuple(sorted(failures, key=lambda failure: failure.video)),
        not_tried=len(clips) - len(answers) - len(failures),
        stopped=stopped,
    )
