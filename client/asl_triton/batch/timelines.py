"""Many long videos: each becomes a timeline, and each timeline its files as soon as it is known."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asl_triton.batch.journal import JOURNAL
from asl_triton.batch.runner import ERRORS, Errand, Manner, Summary, carry_out, write_failures
from asl_triton.batch.workers import Observer
from asl_triton.files import translate_write_errors
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.postprocessing.stitching import with_window
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import AnyOutcome, Failure, Timeline
from asl_triton.video.discovery import Clip
from asl_triton.writers.timelines import TIMELINES

TimelineOutcome = Timeline | Failure


@dataclass(frozen=True)
class TimelineOptions:
    """What is wanted of each timeline: arguments of `AsyncRecognizer.timeline`."""

    rules: Segmentation = field(default_factory=Segmentation)
    vocabulary: Sequence[str] | None = None
    window: int | None = None
    stride: int | None = None


def run(
    recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[Clip],
    output: Path,
    formats: Sequence[str],
    wishes: TimelineOptions,
    *,
    manner: Manner | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Write `OUTPUT/<clip>.<format>` for each clip, sub-folders kept, and `errors.jsonl`; otherwise as `batch.run`.

    A clip's files are written as soon as its timeline is known.

    Raises:
        AslTritonError, KeyboardInterrupt: as `batch.run`.
    """
    observer = observer or Observer()
    files = TimelineFiles(clips, output, formats)

    def question(served: ServedModel) -> dict[str, Any]:
        Ranking(vocabulary=wishes.vocabulary).class_ids(served.labels)
        with_window(served.preset, wishes.window, wishes.stride)
        asked = dataclasses.asdict(wishes)
        return {**served.identity, **asked, "vocabulary": sorted(wishes.vocabulary) if wishes.vocabulary else None}

    async def ask(recognizer: AsyncRecognizer, clip: Clip) -> Timeline:
        return await recognizer.timeline(
            clip.path,
            rules=wishes.rules,
            vocabulary=wishes.vocabulary,
            window=wishes.window,
            stride=wishes.stride,
            name=clip.name,
            on_progress=lambda share: observer.move(clip.name, share),
        )

    def keep(outcome: TimelineOutcome) -> None:
        if isinstance(outcome, Timeline):
            files.write(outcome)

    return carry_out(Errand(question, ask, files.finish, keep), recognizer, clips, output, manner, observer)


class TimelineFiles:
    """The files of a batch of timelines, each written once."""

    def __init__(self, clips: Sequence[Clip], output: Path, formats: Sequence[str]) -> None:
        self._output, self._formats = output, formats
        self._media = {clip.name: clip.path for clip in clips}
        self._stems = choose_output_stems([clip.name for clip in clips])
        self._written: dict[str, tuple[Path, ...]] = {}

    def write(self, timeline: Timeline) -> None:
        """Write the files of one timeline.

        Raises:
            AslTritonError: one cannot be written.
        """
        paths = self._paths(timeline.video)
        for name, path in zip(self._formats, paths, strict=True):
            with translate_write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with TIMELINES[name](path, self._media[timeline.video]) as sink:
                sink.write(timeline)
        self._written[timeline.video] = paths

    def _paths(self, video: str) -> tuple[Path, ...]:
        return tuple(self._output / f"{self._stems[video]}.{name}" for name in self._formats)

    def finish(self, outcomes: Iterator[AnyOutcome]) -> tuple[Path, ...]:
        """Write what is not there yet, and `errors.jsonl`: all paths, by the names of their clips.

        What a run before has written is there: a timeline's files come before its outcome.
        """
        failures = []
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(outcome)
            elif isinstance(outcome, Timeline) and outcome.video not in self._written:
                paths = self._paths(outcome.video)
                if all(path.exists() for path in paths):
                    self._written[outcome.video] = paths
                else:
                    self.write(outcome)
        written = [path for video in sorted(self._written) for path in self._written[video]]
        return (*written, *write_failures(failures, self._output))


def choose_output_stems(names: Sequence[str]) -> dict[str, str]:
    """What each clip's files are called before their format: its name without its extension, as players look for it.

    A clip that would share its files with another, or with the batch's own, keeps its extension: `a.mp4` and `a.mov`
    become `a.mp4.vtt` and `a.mov.vtt`. Whether letters are large makes no difference, as on some file systems.
    """
    chosen = {name: str(Path(name).with_suffix("")) for name in names}
    own = [Path(name).stem for name in (JOURNAL, ERRORS)]
    while True:
        times = Counter(stem.casefold() for stem in (*chosen.values(), *own))
        shared = [name for name, stem in chosen.items() if stem != name and times[stem.casefold()] > 1]
        if not shared:
            return chosen
        chosen |= {name: name for name in shared}
