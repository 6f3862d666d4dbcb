"""What a model answers to labeled clips: where the right gloss ranks, and what ranks before it."""

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

BEST_KEPT = 10  # of a clip's ranking: the whole would be clips x classes


@dataclass(frozen=True)
class ClassMapping:
    """What is told apart: each gloss of a model, or look-alike glosses as one.

    `names[of_gloss[g]]` is the class of gloss g, in the model's class order.
    """

    names: tuple[str, ...]
    of_gloss: tuple[int, ...]

    @classmethod
    def of(cls, labels: Sequence[str], merged: Sequence[Sequence[str]] = ()) -> "ClassMapping":
        """The classes of a model, each group of `merged` being one, named after its glosses.

        Raises:
            LabelsError: a group names a gloss that is not among the labels, or that another group has.
        """
        names = dict(zip(labels, labels, strict=True))
        grouped: set[str] = set()
        for group in merged:
            for gloss in group:
                if gloss not in names:
                    raise LabelsError(
                        f"{gloss!r} is to be merged, and the model does not know it: "
                        "`asl-triton models --labels` lists what it knows"
                    )
                if gloss in grouped:
                    raise LabelsError(f"{gloss!r} is merged twice: put all that look alike on one line")
                grouped.add(gloss)
                names[gloss] = " / ".join(group)
        distinct = tuple(dict.fromkeys(names.values()))
        place = {name: class_id for class_id, name in enumerate(distinct)}
        return cls(distinct, tuple(place[name] for name in names.values()))


@dataclass(frozen=True)
class ScoredClip:
    """What was answered to one clip. `truth` and `best` (best first, up to 10) count in `Classes.names`.

    `rank` is that of the truth among all classes, 1 the best; a class ranks as its best gloss does. `confidence` is the
    best gloss's, as the preset scores it. `signer_id` is the data set's name for who signs.
    """

    video: str
    truth: int
    rank: int
    best: tuple[int, ...]
    confidence: float
    signer_id: str | None = None


@dataclass(frozen=True)
class ScoringRun:
    """The answers to labeled clips, by the clips' names. `stopped` says why it ended before the last, if it did."""

    answers: tuple[ScoredClip, ...]
    failures: tuple[Failure, ...]
    not_tried: int = 0
    stopped: str | None = None


def read_merge(path: Path) -> list[list[str]]:
    """Groups of glosses that look alike: a line each, with commas between. Empty lines are skipped.

    Raises:
        LabelsError: the file cannot be read, or a line has fewer than two glosses.
    """
    try:
        content = read_at_most(path, MAX_LABELS_BYTES)
        if content is None:
            raise LabelsError(f"{path} (--merge) is larger than {MAX_LABELS_BYTES // 2**20} MiB: not groups of glosses")
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as exc:
        raise LabelsError(f"cannot read {path} (--merge): {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise LabelsError(f"{path} (--merge) is not UTF-8 text: write a line a group, with commas") from exc
    groups = []
    for number, line in enumerate(lines, start=1):
        glosses = list(dict.fromkeys(gloss.strip() for gloss in line.split(",") if gloss.strip()))
        if len(glosses) == 1:
            raise LabelsError(
                f"{path}, line {number}: {glosses[0]!r} stands alone; put what looks like it behind commas"
            )
        groups += [glosses] if glosses else []
    if not groups:
        raise LabelsError(f"{path} (--merge) is empty: write a line a group of glosses, with commas between")
    return groups


def score(clip: LabeledClip, recognition: Recognition, classes: ClassMapping) -> ScoredClip:
    """A recognition that ranks every gloss, reduced to what measures need."""
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
    """Ask about labeled clips, `clips_at_once` at a time; `on_outcome` sees each, with its best gloss alone.

    A clip that cannot be read or answered is a `Failure`. Where the server goes away or Ctrl-C comes, what is known is
    returned.

    Raises:
        AslTritonError: the server or its model cannot be used, or the server goes away before the first answer.
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
