"""The report on an evaluation, as JSON and as a page: the figures, the data, and the clips that were not scored."""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asl_triton.evaluation.dataset import Dataset
from asl_triton.evaluation.metrics import Evaluation, evaluate
from asl_triton.evaluation.scoring import ClassMapping, ScoringRun
from asl_triton.files import write_text
from asl_triton.models.served import ServedModel
from asl_triton.writers.html import render_template

# How much the page shows. `evaluation.json` has everything.
CLASSES_SHOWN = 200
CONFUSIONS_SHOWN = 20
NAMES_SHOWN = 200
PLOT = 300  # pixels of the reliability diagram's sides
TRAINED_ON = ("train", "val")  # WLASL's training loader uses both (`nslt_dataset.py`)


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that `asl-triton evaluate` reports. `answers` has at least one answer."""

    data: Path
    subset: str | None  # of a data set; None for all of it
    dataset: Dataset
    model: ServedModel
    classes: ClassMapping
    answers: ScoringRun

    @cached_property
    def evaluation(self) -> Evaluation:
        """The figures."""
        return evaluate(self.answers.answers, self.classes)

    @property
    def merged(self) -> tuple[str, ...]:
        """The classes that stand for several glosses."""
        glosses = Counter(self.classes.of_gloss)
        return tuple(name for class_id, name in enumerate(self.classes.names) if glosses[class_id] > 1)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the figures should know, one sentence each."""
        scored = {answer.video for answer in self.answers.answers}
        subsets = Counter(clip.subset for clip in self.dataset.clips if clip.name in scored)
        found = [*self.dataset.warnings]
        if trained := [f"{subsets[name]:,} of {name}" for name in TRAINED_ON if subsets[name]]:
            found.append(
                f"of the scored clips, {' and '.join(trained)} are in subsets that published checkpoints were "
                "trained on; published figures are for --subset test"
            )
        unboxed = sum(clip.signer is None for clip in self.dataset.clips if clip.name in scored)
        if self.model.preset.framing == "signer" and unboxed:
            found.append(
                f"preset {self.model.preset.name!r} was trained on frames cropped to the signer, but {unboxed:,} of "
                f"the {len(scored):,} scored clips have no box, so whole frames were used (use --signer to give a box)"
            )
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values, as written to `evaluation.json`."""
        names = self.classes.names
        return {
            "data": str(self.data),
            "subset": self.subset,
            "model": {
                "name": self.model.name,
                "version": self.model.version,
                "glosses": len(self.model.labels),
                "preset": self.model.preset.name,
                "score": self.model.preset.score,
                "precision": self.model.precision,
                "checkpoint_sha256": self.model.checkpoint_sha256,
            },
            "merged": self.merged,
            **dataclasses.asdict(self.evaluation),
            "failed": len(self.answers.failures),
            "not_tried": self.answers.not_tried,
            "missing": len(self.dataset.missing),
            "stopped": self.answers.stopped,
            "warnings": self.warnings,
            "unknown_glosses": self.dataset.unknown,
            "failures": [dataclasses.asdict(failure) for failure in self.answers.failures],
            "missing_videos": self.dataset.missing,
            "answers": [
                {
                    "video": answer.video,
                    "gloss": names[answer.truth],
                    "rank": answer.rank,
                    "best": [names[class_id] for class_id in answer.best],
                    "confidence": answer.confidence,
                    "signer_id": answer.signer_id,
                }
                for answer in self.answers.answers
            ],
        }


def render_page(report: EvaluationReport) -> str:
    """Render the report as a self-contained HTML page without scripts, for light and dark mode."""
    return render_template(
        "evaluation.html",
        report=report,
        evaluation=report.evaluation,
        classes_shown=CLASSES_SHOWN,
        confusions_shown=CONFUSIONS_SHOWN,
        names_shown=NAMES_SHOWN,
        plot=PLOT,
    )


def write_report(report: EvaluationReport, output: Path) -> tuple[Path, ...]:
    """Write `evaluation.json` and `evaluation.html` to a folder. Returns their paths.

    Raises:
        AslTritonError: the files could not be written, or Jinja2 is not installed.
    """
    as_json = json.dumps(report.as_json(), indent=1)
    page = render_page(report)
    return write_text(output / "evaluation.json", as_json), write_text(output / "evaluation.html", page)
