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
from asl_triton.batch.runner import ERRORS, BatchOptions, Summary, build_job_key, summarize, write_results
from asl_triton.batch.signals import ForcedStop, GracefulShutdown
from asl_triton.batch.workers import Observer
from asl_triton.files import FolderLock, ensure_folder
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import AnyOutcome, Failure


class RayBatch:
    """Recognizes clips on a Ray cluster, and writes the same files with the same content as `RecognitionBatch`."""

    def __init__(
        self,
        clips: Sequence[StoredClip],
        source: Folder,
        output: Folder,
        formats: Sequence[str],
        ranking: Ranking,
        options: BatchOptions | None = None,
        observer: Observer | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self.observer = observer or Observer()
        self._clips, self._source, self._output = clips, source, output
        self._formats, self._ranking = formats, ranking
        self._options, self._cluster = options or BatchOptions(), cluster or Cluster()

    def run(self, make_recognizer: Callable[[], AsyncRecognizer]) -> Summary:
        """Recognize the clips and write the results; `make_recognizer` is sent to each actor's machine.

        Outcomes are in `OUTPUT/journal/` as soon as a block of clips is done. Clips that the journal knows are not
        asked about again: answers to the same question about unchanged files. The first Ctrl-C finishes what is under
        way, the second stops at once.

        Raises:
            AslTritonError: the server, its model or the cluster cannot be used, or nothing can be written.
            KeyboardInterrupt: Ctrl-C before the first outcome.
        """
        began_s = time.perf_counter()
        clips, options, cluster = self._clips, self._options, self._cluster
        identity, key = asyncio.run(read_identity(make_recognizer, self._ranking))
        with output_lock(self._output):
            journal = ParquetJournal(self._output, key)
            journal.begin(anew=options.fresh)
            missing = [clip for clip in clips if not journal.knows(clip)]
            self.observer.skip(len(clips) - len(missing))
            assignment = WorkerSpec(
                make_recognizer,
                identity,
                self._ranking,
                self._source,
                self._output,
                options.wait_s,
                options.max_failures,
                options.in_flight,
                journal.run,
            )
            with contextlib.ExitStack() as joined:
                if missing:
                    joined.enter_context(cluster.joined())
                course = ClusterCourse(assignment, journal.folder, cluster, options, self.observer)
                with GracefulShutdown(course.finish) as interruption:  # after Ray, which handles signals itself
                    stopped = course.run(missing, interruption)
                    joined.close()
                    journal.look()
                    if stopped is not None and not course.told and len(missing) == len(clips):
                        raise stopped
                    tally, files = OutcomeCounter(), tuple[Path | str, ...]()
                    try:
                        if not isinstance(stopped, ForcedStop):
                            files = write(tally.counted(journal.outcomes(clips)), self._output, self._formats)
                    except ForcedStop as exc:
                        stopped = exc
            if not files:
                tally = OutcomeCounter(sum(map(journal.knows, clips)))
        return summarize(
            len(clips),
            tally.recognized,
            tally.failures,
            files,
            stopped,
            seconds=time.perf_counter() - began_s,
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
        return served.identity, build_job_key(served, ranking)


@contextlib.contextmanager
def output_lock(output: Folder) -> Iterator[None]:
    """One run at a time in a folder of this machine; elsewhere nobody can lock one."""
    if output.path is None:
        yield
        return
    with FolderLock(ensure_folder(output.path) / LOCK):
        yield


def write(outcomes: Iterator[AnyOutcome], output: Folder, formats: Sequence[str]) -> tuple[Path | str, ...]:
    """Write the files of all outcomes where the results go: what was written.

    Raises:
        AslTritonError: a file cannot be written.
    """
    if output.path is not None:
        return write_results(outcomes, output.path, formats)
    with tempfile.TemporaryDirectory(prefix="asl-triton-") as folder:
        return output.upload(write_results(outcomes, Path(folder), formats), [ERRORS])
