"""Batches of long videos. Each becomes a timeline, whose files are written as soon as it is complete."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from asl_triton.batch.journal import JOURNAL
from asl_triton.batch.runner import ERRORS, BatchOptions, BatchRun, build_box_key, write_failures
from asl_triton.batch.workers import Observer
from asl_triton.files import translate_write_errors
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.postprocessing.stitching import with_window
from asl_triton.results import AnyOutcome, Failure, Timeline
from asl_triton.video.discovery import Clip
from asl_triton.writers.timelines import TIMELINES


@dataclass(frozen=True)
class TimelineOptions:
    """The arguments of `AsyncRecognizer.timeline` for each video."""

    rules: Segmentation = field(default_factory=Segmentation)
    vocabulary: Sequence[str] | None = None
    window: int | None = None
    stride: int | None = None


class TimelineBatch(BatchRun[Timeline]):
    """Writes `OUTPUT/<clip>.<format>` for each video, in the same subfolders, and `errors.jsonl`."""

    def __init__(
        self,
        clips: Sequence[Clip],
        output: Path,
        formats: Sequence[str],
        timeline: TimelineOptions,
        options: BatchOptions | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(clips, output, formats, options, observer)
        self.timeline = timeline
        self._media = {clip.name: clip.path for clip in clips}
        self._stems = choose_output_stems([clip.name for clip in clips])
        self._written: dict[str, tuple[Path, ...]] = {}  # by clip name

    def build_job_key(self, served: ServedModel) -> dict[str, Any]:
        Ranking(vocabulary=self.timeline.vocabulary).class_ids(served.labels)
        with_window(served.preset, self.timeline.window, self.timeline.stride)
        vocabulary = sorted(self.timeline.vocabulary) if self.timeline.vocabulary else None
        # "bucket" was an option of earlier versions. It is kept so that their journals are still found.
        box = build_box_key(self.recognizer)
        return {**served.identity, **asdict(self.timeline), "vocabulary": vocabulary, "bucket": 1, **box}

    async def recognize_clip(self, clip: Clip) -> Timeline:
        return await self.recognizer.timeline(
            clip.path,
            name=clip.name,
            on_progress=lambda share: self.observer.move(clip.name, share),
            **vars(self.timeline),
        )

    def keep(self, clip: Clip, outcome: Timeline | Failure) -> None:
        if isinstance(outcome, Timeline):
            self._write(outcome)
        super().keep(clip, outcome)

    def write_outputs(self, outcomes: Iterator[AnyOutcome]) -> tuple[Path, ...]:
        """Write the missing files. Those of an earlier run exist, because files are written before their outcome."""
        failures = []
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(outcome)
            elif isinstance(outcome, Timeline) and outcome.video not in self._written:
                paths = self._paths(outcome.video)
                if all(path.exists() for path in paths):
                    self._written[outcome.video] = paths
                else:
                    self._write(outcome)
        written = [path for video in sorted(self._written) for path in self._written[video]]
        return (*written, *write_failures(failures, self.output))

    def _write(self, timeline: Timeline) -> None:
        paths = self._paths(timeline.video)
        for name, path in zip(self.formats, paths, strict=True):
            with translate_write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with TIMELINES[name](path, self._media[timeline.video], raw=self._options.raw_csv) as sink:
                sink.write(timeline)
        self._written[timeline.video] = paths

    def _paths(self, video: str) -> tuple[Path, ...]:
        return tuple(self.output / f"{self._stems[video]}.{name}" for name in self.formats)


def choose_output_stems(names: Sequence[str]) -> dict[str, str]:
    """Choose what each clip's files are called before their extension: the clip's name, as players expect.

    A clip whose files would collide with those of another clip or of the batch keeps its own extension: `a.mp4` and
    `a.mov` become `a.mp4.vtt` and `a.mov.vtt`. Case is ignored, as on some file systems.
    """
    chosen = {name: str(Path(name).with_suffix("")) for name in names}
    own = [Path(name).stem for name in (JOURNAL, ERRORS)]
    while True:
        times = Counter(stem.casefold() for stem in (*chosen.values(), *own))
        shared = [name for name, stem in chosen.items() if stem != name and times[stem.casefold()] > 1]
        if not shared:
            return chosen
        chosen |= {name: name for name in shared}
