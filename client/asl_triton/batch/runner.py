"""Runs a batch. Each outcome goes to the journal as soon as it is known; the results are written from the journal."""

import asyncio
import contextlib
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from asl_triton.batch.concurrency import ConcurrencyController, ConcurrencyReport
from asl_triton.batch.journal import Journal
from asl_triton.batch.signals import ForcedStop, GracefulShutdown
from asl_triton.batch.workers import ClipWorkers, Observer, Result
from asl_triton.errors import AslTritonError
from asl_triton.files import translate_write_errors
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import AnyOutcome, Failure, Recognition
from asl_triton.video.discovery import Clip, FileFingerprint
from asl_triton.writers.tables import SINKS, JsonLinesSink, Sink

ERRORS = "errors.jsonl"
YIELD_EVERY = 256  # clips of an earlier run to skip before other coroutines get a turn


@dataclass(frozen=True)
class BatchOptions:
    """How a batch processes its clips.

    `wait_s`: how long a server may be down, or too busy for a clip. `max_failures`: give up after this many failed
    clips. `in_flight`: clips in flight at once; adaptive by default. `by_content`: detect changed files by SHA-256
    instead of size and time. `fresh`: ignore the outcomes of earlier runs. `raw_csv`: leave text in CSV unchanged, even
    if a spreadsheet would run it as a formula.
    """

    wait_s: float = 0.0
    max_failures: int | None = None
    in_flight: int | None = None
    by_content: bool = False
    fresh: bool = False
    raw_csv: bool = False


@dataclass(frozen=True)
class Summary:
    """How a batch ended. Counts include `known_before` clips from earlier runs.

    `stopped` says why the batch ended before the last clip, if it did. `rejected` counts failures for which the server
    was too busy. `files` is empty after a forced stop, but the journal has everything.
    """

    recognized: int
    failures: tuple[Failure, ...]
    not_tried: int
    seconds: float
    files: tuple[Path | str, ...]
    stopped: str | None = None
    rejected: int = 0
    known_before: int = 0
    concurrency: ConcurrencyReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values for `--json`. The names `recognised` and `pace` come from earlier versions."""
        values = dataclasses.asdict(self)
        pace = values.pop("concurrency")
        return {"recognised": self.recognized, **values, "pace": pace}


class BatchRun(ABC, Generic[Result]):
    """One run over clips, with its journal. Subclasses define how to recognize a clip and write the results."""

    def __init__(
        self,
        clips: Sequence[Clip],
        output: Path,
        formats: Sequence[str],
        options: BatchOptions | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.output, self.formats = output, formats
        self.observer = observer or Observer()
        self._names = {clip.name for clip in clips}
        self._clips = iter(clips)
        self._options = options or BatchOptions()
        self._journal = Journal(output)
        self._fingerprints: dict[str, FileFingerprint | None] = {}  # of clips in flight
        self._known_before = 0
        self._workers: ClipWorkers[Clip, Result] | None = None

    @abstractmethod
    def build_job_key(self, served: ServedModel) -> dict[str, Any]:
        """Return everything that the results depend on besides the clips, as JSON values.

        Raises:
            AslTritonError: something is wrong for every clip, such as a gloss that the model does not know.
        """

    @abstractmethod
    async def recognize_clip(self, clip: Clip) -> Result:
        """Recognize one clip."""

    @abstractmethod
    def write_outputs(self, outcomes: Iterator[AnyOutcome]) -> tuple[Path | str, ...]:
        """Write the files of all outcomes, which are sorted by clip name. Returns their paths."""

    def run(self, make_recognizer: Callable[[], AsyncRecognizer]) -> Summary:
        """Recognize the clips and write the results.

        Each outcome goes to `OUTPUT/journal.jsonl` as soon as it is known, then to the observer. If a clip fails, its
        outcome is a `Failure`. Clips are skipped if the journal has their answers from the same model to the same
        question and their files are unchanged. If the server goes down, the disk fills up or the user presses Ctrl-C,
        the outcomes so far are still written; if there are none, files of an earlier run are left unchanged. A second
        Ctrl-C stops at once.

        Raises:
            AslTritonError: the server or its model is unusable, another run is using the folder, or nothing could be
                written. If there are outcomes but the files could not be written, the message names the journal.
            KeyboardInterrupt: Ctrl-C before the first outcome.
        """
        began_s = time.perf_counter()
        with self._journal, GracefulShutdown(self._announce_stop) as shutdown:
            stopped: AslTritonError | KeyboardInterrupt | None = None
            try:
                asyncio.run(self._recognize_missing(make_recognizer, shutdown))
            except (AslTritonError, KeyboardInterrupt) as exc:
                stopped = exc
                if not isinstance(exc, ForcedStop):
                    self._forget_changed_clips()
            known = self._journal.count(self._names)
            if stopped is not None and not known:
                raise stopped
            files: tuple[Path | str, ...] = ()
            try:
                if not isinstance(stopped, ForcedStop):
                    files = self.write_outputs(self._journal.outcomes(self._names))
            except AslTritonError as exc:
                raise AslTritonError(f"{exc}. The {known} outcomes so far are in {self._journal.address}") from exc
            except ForcedStop as exc:
                stopped = exc
            failures = tuple(self._journal.failures(self._names))
        seconds = time.perf_counter() - began_s
        concurrency = self._workers.concurrency if self._workers else None
        return summarize(
            len(self._names),
            known - len(failures),
            failures,
            files,
            stopped,
            seconds=seconds,
            known_before=self._known_before,
            concurrency=concurrency.report(seconds) if concurrency and concurrency.clips else None,
        )

    async def _recognize_missing(
        self, make_recognizer: Callable[[], AsyncRecognizer], shutdown: GracefulShutdown
    ) -> None:
        options = self._options
        with shutdown.guard_task() as stopping:
            async with make_recognizer() as self.recognizer:
                least, most = options.in_flight or 1, options.in_flight or self.recognizer.in_flight
                self._workers = ClipWorkers[Clip, Result](
                    self.recognizer,
                    self.recognize_clip,
                    self.keep,
                    ConcurrencyController(least, most, self.recognizer.decoders),
                    wait_s=options.wait_s,
                    max_failures=options.max_failures,
                    say=self.observer.say,
                    stopping=stopping,
                )
                served = await self.recognizer.model()
                if served.introduction:
                    self.observer.say(served.introduction)
                key = self.build_job_key(served)
                if put_aside := self._journal.begin(key, fresh=options.fresh):
                    self.observer.say(put_aside)
                await self._workers.run(self._find_missing(stopping))

    def keep(self, clip: Clip, outcome: Result | Failure) -> None:
        """Add an outcome to the journal.

        Raises:
            AslTritonError: the journal could not be written.
        """
        self._journal.append(outcome, self._fingerprints.pop(clip.name))
        self.observer.advance(outcome)

    def _announce_stop(self, signal_name: str) -> None:
        under_way = self._workers.under_way if self._workers else 0
        what = f"finishing the {under_way} clips in flight" if under_way else "writing the results"
        self.observer.say(f"{signal_name}: {what}. Press Ctrl-C again to stop at once")

    async def _find_missing(self, stopping: asyncio.Event) -> AsyncIterator[Clip]:
        """Yield the clips that are new or have changed, then those that failed before, until the run stops."""
        failed: list[Clip] = []
        for number, clip in enumerate(self._clips):
            if self._journal.has_failed(clip.name):
                failed.append(clip)
                continue
            fingerprint = await self._read_fingerprint(clip)
            before = self._journal.fingerprint(clip.name)
            if before is not None and before.is_same(fingerprint):
                self._known_before += 1
                self.observer.skip(1)
                if number % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            else:
                if before is not None:
                    self._journal.forget(clip.name)
                self._fingerprints[clip.name] = fingerprint
                yield clip
            if stopping.is_set():
                return
        for clip in failed:
            if stopping.is_set():
                return
            self._fingerprints[clip.name] = await self._read_fingerprint(clip)
            yield clip

    async def _read_fingerprint(self, clip: Clip) -> FileFingerprint | None:
        if self._options.by_content:
            return await asyncio.to_thread(FileFingerprint.of, clip.path, True)
        return FileFingerprint.of(clip.path)

    def _forget_changed_clips(self) -> None:
        """Forget clips that the run did not reach and that changed since they were answered."""
        for clip in self._clips:
            before = self._journal.fingerprint(clip.name)
            if before is not None and not before.is_same(FileFingerprint.of(clip.path)):
                self._journal.forget(clip.name)


class RecognitionBatch(BatchRun[Recognition]):
    """Ranks the glosses of each clip and writes `OUTPUT/results.<format>` and `errors.jsonl`."""

    def __init__(
        self,
        clips: Sequence[Clip],
        output: Path,
        formats: Sequence[str],
        ranking: Ranking,
        options: BatchOptions | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(clips, output, formats, options, observer)
        self.ranking = ranking

    def build_job_key(self, served: ServedModel) -> dict[str, Any]:
        return build_job_key(served, self.ranking, self.recognizer)

    async def recognize_clip(self, clip: Clip) -> Recognition:
        return await self.recognizer.recognize(clip.path, name=clip.name, **vars(self.ranking))

    def write_outputs(self, outcomes: Iterator[AnyOutcome]) -> tuple[Path | str, ...]:
        return write_results(outcomes, self.output, self.formats, raw_csv=self._options.raw_csv)


def build_job_key(served: ServedModel, ranking: Ranking, recognizer: AsyncRecognizer) -> dict[str, Any]:
    """Return everything that a clip's ranked glosses depend on besides the clip.

    Raises:
        LabelsError: the vocabulary has glosses that the model does not know.
    """
    ranking.class_ids(served.labels)
    # So that journals of earlier versions are still found: they had a "bucket", and stored no threshold as 0.
    asked = {
        "top_k": ranking.top_k,
        "vocabulary": sorted(ranking.vocabulary) if ranking.vocabulary else None,
        "min_confidence": ranking.with_threshold(served.card.min_confidence).min_confidence or 0.0,
        "bucket": 1,
    }
    return {**served.identity, **asked, **build_box_key(recognizer)}


def build_box_key(recognizer: AsyncRecognizer) -> dict[str, Any]:
    """Return the part of a job key for the signer's box. It is empty for `auto`, as in earlier versions."""
    box = recognizer.signer
    if box is not None:
        return {"signer": [box.x0, box.y0, box.x1, box.y1]}
    return {} if recognizer.find_signer else {"signer": "off"}


def summarize(
    num_clips: int,
    recognized: int,
    failures: Sequence[Failure],
    files: tuple[Path | str, ...],
    stopped: BaseException | None,
    *,
    seconds: float,
    known_before: int,
    concurrency: ConcurrencyReport | None = None,
) -> Summary:
    """Build the summary of a run. A Ctrl-C after the last clip does not count as a stop."""
    not_tried = num_clips - recognized - len(failures)
    came_too_late = isinstance(stopped, KeyboardInterrupt) and files and not not_tried
    return Summary(
        recognized=recognized,
        failures=tuple(failures),
        not_tried=not_tried,
        seconds=seconds,
        files=files,
        stopped=None if stopped is None or came_too_late else str(stopped) or "interrupted",
        rejected=sum(failure.rejected for failure in failures),
        known_before=known_before,
        concurrency=concurrency,
    )


def write_results(
    outcomes: Iterable[AnyOutcome], output: Path, formats: Sequence[str], *, raw_csv: bool = False
) -> tuple[Path, ...]:
    """Write `results.<format>` for each format, and `errors.jsonl` if there are failures. Returns the paths.

    Raises:
        AslTritonError: a file could not be written.
    """
    sinks: list[Sink[Recognition]] = [SINKS[name](output / f"results.{name}", raw=raw_csv) for name in formats]
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
    """Write `errors.jsonl` if there are failures. Otherwise delete the one from an earlier run.

    Raises:
        AslTritonError: the file could not be written or deleted.
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
