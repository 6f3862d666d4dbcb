"""Many clips on a cluster: outcomes as Ray writes them, then the files that a batch on one machine writes."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asl_triton.batch.journal import LOCK
from asl_triton.batch.ray.actor import WorkerSpec
from asl_triton.batch.ray.cluster import Cluster
from asl_triton.batch.ray.dataset import ClusterCourse
from asl_triton.batch.ray.journal import ParquetJournal
from asl_triton.batch.ray.storage import Folder, StoredClip
from asl_triton.batch.runner import ERRORS, Manner, Summary, question_of, write_results
from asl_triton.batch.signals import ForcedStop, GracefulShutdown
from asl_triton.batch.workers import Observer
from asl_triton.files import FolderLock, ensure_folder
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import AnyOutcome, Failure


@dataclass(frozen=True)
class RayBatchSpec:
    """What is to be done about the clips of `source`, and where its results go."""

    source: Folder
    output: Folder
    formats: Sequence[str]
    ranking: Ranking


def run(
    recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[StoredClip],
    order: RayBatchSpec,
    *,
    cluster: Cluster | None = None,
    manner: Manner | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Recognize clips on a Ray cluster, and write the files that `batch.run` writes, with the same content.

    `recognizer` makes one for each actor, and is sent to its machine. Outcomes are in `OUTPUT/journal/` as soon as a
    block of clips is done; what is known there of the same question, of files that have not changed since, is not asked
    again. The first Ctrl-C finishes what is under way, the second stops at once.

    Raises:
        AslTritonError: the server, its model or the cluster cannot be used, or nothing can be written.
        KeyboardInterrupt: Ctrl-C before the first outcome.
    """
    began_s = time.perf_counter()
    cluster, manner, observer = cluster or Cluster(), manner or Manner(), observer or Observer()
    identity, question = asyncio.run(read_identity(recognizer, order.ranking))
    with output_lock(order.output):
        journal = ParquetJournal(order.output, question)
        journal.begin(anew=manner.anew)
        missing = [clip for clip in clips if not journal.knows(clip)]
        observer.skip(len(clips) - len(missing))
        assignment = WorkerSpec(
            recognizer,
            identity,
            order.ranking,
            order.source,
            order.output,
            manner.patience,
            manner.in_flight,
            journal.run,
        )
        with contextlib.ExitStack() as joined:
            if missing:
                joined.enter_context(cluster.joined())
            course = ClusterCourse(assignment, journal.folder, cluster, manner, observer)
            with GracefulShutdown(course.finish) as interruption:  # after Ray, which sees to signals itself
                stopped = course.run(missing, interruption)
                joined.close()
                journal.look()
                if stopped is not None and not course.told and len(missing) == len(clips):
                    raise stopped
                tally, files = OutcomeCounter(), tuple[Path | str, ...]()
                try:
                    if not isinstance(stopped, ForcedStop):
                        files = write(tally.counted(journal.outcomes(clips)), order)
                except ForcedStop as exc:
                    stopped = exc
        if not files:
            tally = OutcomeCounter(sum(map(journal.knows, clips)))
    not_tried = len(clips) - tally.recognized - len(tally.failures)
    came_too_late = isinstance(stopped, KeyboardInterrupt) and files and not not_tried
    return Summary(
        recognized=tally.recognized,
        failures=tuple(tally.failures),
        not_tried=not_tried,
        seconds=time.perf_counter() - began_s,
        files=files,
        stopped=None if stopped is None or came_too_late else str(stopped) or "interrupted",
        rejected=sum(failure.rejected for failure in tally.failures),
        known_before=len(clips) - len(missing),
    )


@dataclass
class OutcomeCounter:
    """What is counted of outcomes that pass by."""

    recognized: int = 0
    failures: list[Failure] = field(default_factory=list)

    def counted(self, outcomes: Iterator[AnyOutcome]) -> Iterator[AnyOutcome]:
        """The outcomes."""
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                self.failures.append(outcome)
            else:
                self.recognized += 1
            yield outcome


async def read_identity(
    recognizer: Callable[[], AsyncRecognizer], ranking: Ranking
) -> tuple[dict[str, str], dict[str, Any]]:
    """Which model answers, and all that its answers depend on."""
    async with recognizer() as one:
        served = await one.model()
        return served.identity, {**question_of(served, ranking), "bucket": 1}


@contextlib.contextmanager
def output_lock(output: Folder) -> Iterator[None]:
    """One run at a time in a folder of this machine; elsewhere nobody can lock one."""
    if output.path is None:
        yield
        return
    with FolderLock(ensure_folder(output.path) / LOCK):
        yield


def write(outcomes: Iterator[AnyOutcome], order: RayBatchSpec) -> tuple[Path | str, ...]:
    """Write the files of all outcomes where the results go: what was written.

    Raises:
        AslTritonError: a file cannot be written.
    """
    if order.output.path is not None:
        return write_results(outcomes, order.output.path, order.formats)
    with tempfile.TemporaryDirectory(prefix="asl-triton-") as folder:
        return order.output.upload(write_results(outcomes, Path(folder), order.formats), [ERRORS])
