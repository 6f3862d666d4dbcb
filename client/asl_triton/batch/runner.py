"""Many clips: decoding and asking overlap, each outcome goes to the journal at once, the files are written from it."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from asl_triton.batch.concurrency import ConcurrencyController, ConcurrencyReport
from asl_triton.batch.journal import Journal
from asl_triton.batch.signals import ForcedStop, GracefulShutdown
from asl_triton.batch.workers import AnyClip, Ask, ClipWorkers, FailurePolicy, Observer, Result
from asl_triton.errors import AslTritonError
from asl_triton.files import translate_write_errors
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import AnyOutcome, Failure, Outcome, Recognition
from asl_triton.video.discovery import Clip, FileFingerprint
from asl_triton.writers.tables import SINKS, JsonLinesSink, Sink

ERRORS = "errors.jsonl"
LOOKED_AT_ONCE = 256  # clips that a run before may have answered: then the loop may turn to others


@dataclass(frozen=True)
class Errand(Generic[AnyClip, Result]):
    """What is to be done about each clip of a batch.

    `question` says, for a model, all that the answers depend on, as JSON can hold it; it raises what is wrong for
    all clips. `ask` asks about one clip; `keep` gets its outcome before the journal does. `write` writes files of all
    outcomes, which it gets by the names of the clips.
    """

    question: Callable[[ServedModel], dict[str, Any]]
    ask: Ask[AnyClip, Result]
    write: Callable[[Iterator[AnyOutcome]], tuple[Path, ...]]
    keep: Callable[[Result | Failure], None] = lambda outcome: None


@dataclass(frozen=True)
class Manner:
    """How a batch goes about its clips.

    Without `in_flight` the number of clips under way adapts itself. `by_content` tells by their SHA-256 whether files
    have changed, not by size and time. With `anew` nothing that is known counts.
    """

    patience: FailurePolicy = field(default_factory=FailurePolicy)
    in_flight: int | None = None
    by_content: bool = False
    anew: bool = False


@dataclass(frozen=True)
class Summary:
    """How a batch ended: all that is known of its clips, `known_before` of them from earlier runs.

    `stopped` says why it ended before its last clip, if it did; `rejected` counts the failures for which the server had
    no room. `files` is empty where it was stopped at once: the journal has it all.
    """

    recognized: int
    failures: tuple[Failure, ...]
    not_tried: int
    seconds: float
    files: tuple[Path | str, ...]
    stopped: str | None = None
    rejected: int = 0
    known_before: int = 0
    pace: ConcurrencyReport | None = None


def run(
    recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[Clip],
    output: Path,
    formats: Sequence[str],
    ranking: Ranking,
    *,
    manner: Manner | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Recognize clips, and write `OUTPUT/results.<format>` and `errors.jsonl`.

    Each outcome goes to `OUTPUT/journal.jsonl` as soon as it is known, then to `observer`; a clip that cannot be read
    or answered is a `Failure`. What the journal already knows is not asked again: the answers of the same model
    with the same `ranking` to files that have not changed since. Where the server goes away, the disk fills or Ctrl-C
    comes, what is known is still written, and the summary says why it stopped; where nothing is known yet, the files of
    an earlier run stay as they are. A second Ctrl-C stops at once.

    Raises:
        AslTritonError: the server or its model cannot be used, another run holds the folder, or nothing can be written.
            Where outcomes are known but the files cannot be written, the message names the journal.
        KeyboardInterrupt: Ctrl-C before the first outcome.
    """

    def question(served: ServedModel) -> dict[str, Any]:
        return question_of(served, ranking)

    def write(outcomes: Iterator[AnyOutcome]) -> tuple[Path, ...]:
        return write_results(outcomes, output, formats)

    return carry_out(Errand(question, asking(ranking), write), recognizer, clips, output, manner, observer)


def question_of(served: ServedModel, ranking: Ranking) -> dict[str, Any]:
    """All that a clip's ranked glosses depend on, beside the clip.

    Raises:
        LabelsError: the model does not know the vocabulary.
    """
    ranking.class_ids(served.labels)
    asked = dataclasses.asdict(ranking)
    return {**served.identity, **asked, "vocabulary": sorted(ranking.vocabulary) if ranking.vocabulary else None}


def asking(ranking: Ranking) -> Ask[Clip, Recognition]:
    """Asks for a clip's ranked glosses."""

    async def ask(recognizer: AsyncRecognizer, clip: Clip) -> Recognition:
        return await recognizer.recognize(
            clip.path,
            top_k=ranking.top_k,
            vocabulary=ranking.vocabulary,
            min_confidence=ranking.min_confidence,
            name=clip.name,
        )

    return ask


def carry_out(
    errand: Errand[AnyClip, Result],
    make_recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[AnyClip],
    output: Path,
    manner: Manner | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Do what an errand says about each clip; `run` says what becomes of the outcomes."""
    began_s = time.perf_counter()
    names = {clip.name for clip in clips}
    with Journal(output) as journal:
        course = Course(errand, clips, journal, manner or Manner(), observer or Observer())
        with GracefulShutdown(course.finish) as interruption:
            stopped = course.run(make_recognizer, interruption)
            known = journal.count(names)
            if stopped is not None and not known:
                raise stopped
            files: tuple[Path, ...] = ()
            try:
                if not isinstance(stopped, ForcedStop):
                    files = errand.write(journal.outcomes(names))
            except AslTritonError as exc:
                raise AslTritonError(f"{exc}. The {known} outcomes so far are in {journal.path}") from exc
            except ForcedStop as exc:
                stopped = exc
        failures = tuple(journal.failures(names))
    not_tried = len(names) - known
    came_too_late = isinstance(stopped, KeyboardInterrupt) and files and not not_tried
    seconds = time.perf_counter() - began_s
    return Summary(
        recognized=known - len(failures),
        failures=failures,
        not_tried=not_tried,
        seconds=seconds,
        files=files,
        stopped=None if stopped is None or came_too_late else str(stopped) or "interrupted",
        rejected=sum(failure.rejected for failure in failures),
        known_before=course.known_before,
        pace=course.pace.report(seconds) if course.pace and course.pace.clips else None,
    )


class Course(Generic[AnyClip, Result]):
    """One run through the clips of a batch, into its journal."""

    def __init__(
        self,
        errand: Errand[AnyClip, Result],
        clips: Sequence[AnyClip],
        journal: Journal,
        manner: Manner,
        observer: Observer,
    ) -> None:
        self.known_before = 0
        self.pace: ConcurrencyController | None = None
        self._errand: Errand[AnyClip, Result] = errand
        self._clips = iter(clips)
        self._journal, self._manner, self._observer = journal, manner, observer
        self._workers: ClipWorkers[AnyClip, Result] | None = None

    def run(
        self, make_recognizer: Callable[[], AsyncRecognizer], interruption: GracefulShutdown
    ) -> AslTritonError | KeyboardInterrupt | None:
        """Go through the clips; returns why it ended before the last, if it did."""
        try:
            asyncio.run(self._run(make_recognizer, interruption))
        except ForcedStop as exc:
            return exc
        except (AslTritonError, KeyboardInterrupt) as exc:
            self._forget_what_changed()
            return exc
        return None

    async def _run(self, make_recognizer: Callable[[], AsyncRecognizer], interruption: GracefulShutdown) -> None:
        with interruption.task() as asked:
            try:
                async with make_recognizer() as recognizer:
                    self._workers = self._made(recognizer, asked)
                    question = {**self._errand.question(await recognizer.model()), "bucket": 1}
                    if put_aside := self._journal.begin(question, anew=self._manner.anew):
                        self._observer.say(put_aside)
                    clips = self._missing(asked)
                    await self._workers.run(clips)
            except asyncio.CancelledError:
                if interruption.at_once:
                    raise ForcedStop from None
                raise
            if asked.is_set():
                raise KeyboardInterrupt("interrupted")

    def _made(self, recognizer: AsyncRecognizer, stopping: asyncio.Event) -> ClipWorkers[AnyClip, Result]:
        fixed = self._manner.in_flight
        self.pace = ConcurrencyController(
            fixed or 1, fixed or recognizer.in_flight, recognizer.decoders, limit=fixed or 0
        )
        return ClipWorkers(
            recognizer,
            self._errand.ask,
            self._keep,
            pace=self.pace,
            patience=self._manner.patience,
            observer=self._observer,
            stopping=stopping,
            by_content=self._manner.by_content,
        )

    def _keep(self, clip: AnyClip, outcome: Result | Failure, stamp: FileFingerprint | None) -> None:
        self._errand.keep(outcome)
        self._journal.append(outcome, stamp)
        self._observer.advance(outcome)

    def finish(self, signal_name: str) -> None:
        """Say what becomes of a run that is asked to stop."""
        under_way = self._workers.under_way if self._workers else 0
        what = f"finishing the {under_way} clips that are under way" if under_way else "writing the results"
        self._observer.say(f"{signal_name}: {what}; once more stops at once")

    def _forget_what_changed(self) -> None:
        """Of the clips that were not looked at, those that were changed since they were answered are not known."""
        for clip in self._clips:
            before = self._journal.stamp(clip.name)
            if before is not None and not before.is_same(FileFingerprint.of(clip.path)):
                self._journal.forget(clip.name)

    async def _missing(self, stopping: asyncio.Event) -> AsyncIterator[AnyClip]:
        """The clips that have no answer yet or were changed since, those that failed last, until the run stops."""
        failed: list[AnyClip] = []
        for looked_at, clip in enumerate(self._clips):
            before = self._journal.stamp(clip.name)
            if before is not None and before.is_same(await self._stamp(clip)):
                self.known_before += 1
                self._observer.skip(1)
            elif self._journal.has_failed(clip.name):
                failed.append(clip)
            else:
                if before is not None:
                    self._journal.forget(clip.name)
                yield clip
            if looked_at % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if stopping.is_set():
                return
        for clip in failed:
            if stopping.is_set():
                return
            yield clip

    async def _stamp(self, clip: AnyClip) -> FileFingerprint | None:
        if self._manner.by_content:
            return await asyncio.to_thread(FileFingerprint.of, clip.path, True)
        return FileFingerprint.of(clip.path)


async def recognize(
    make_recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[AnyClip],
    ranking: Ranking,
    clips_at_once: int,
    keep: Callable[[AnyClip, Outcome], None],
) -> None:
    """Recognize clips, `clips_at_once` at a time, and hand the outcome of each to `keep` as soon as it is known.

    Raises:
        AslTritonError: the server or its model cannot be used. ServerError: it went away. And what `keep` raises.
    """

    async def all_clips() -> AsyncIterator[AnyClip]:
        for clip in clips:
            yield clip

    async with make_recognizer() as recognizer:
        ranking.class_ids((await recognizer.model()).labels)  # a wrong server or vocabulary is told before any clip
        pace = ConcurrencyController(clips_at_once, clips_at_once, recognizer.decoders)
        workers = ClipWorkers[AnyClip, Recognition](
            recognizer, asking(ranking), lambda clip, outcome, _stamp: keep(clip, outcome), pace=pace
        )
        await workers.run(all_clips())


def write_results(outcomes: Iterable[AnyOutcome], output: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Write `results.<format>` for each format, and `errors.jsonl` where there are failures: the paths written.

    Raises:
        AslTritonError: a file cannot be written.
    """
    sinks: list[Sink[Recognition]] = [SINKS[name](output / f"results.{name}") for name in formats]
    failures: list[Failure] = []
    with contextlib.ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(sink)
        for outcome in outcomes:
            if isinstance(outcome, Recognition):
                for sink in sinks:
                    sink.write(outcome)
            elif isinstance(outcome, Failure):
                failures.append(outcome)
    return (*(sink.path for sink in sinks), *write_failures(failures, output))


def write_failures(failures: Sequence[Failure], output: Path) -> tuple[Path, ...]:
    """Write `errors.jsonl` where there are failures; where there are none, that of a run before goes.

    Raises:
        AslTritonError: it cannot be written, or deleted.
    """
    path = output / ERRORS
    if not failures:
        with translate_write_errors(path):
            path.unlink(missing_ok=True)
        return ()
    with JsonLinesSink[Failure](path) as sink:
        for failure in failures:
            sink.write(failure)
    return (path,)
