"""One run through clips on a cluster: Ray spreads them over actors, tries again, and writes what they answer."""

import contextlib
import ctypes
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from asl_triton.batch.ray.actor import BLOCKS_AT_ONCE, ClipWorker, ProgressActor, ProgressReport, WorkerSpec, make_table
from asl_triton.batch.ray.cluster import Cluster
from asl_triton.batch.ray.storage import Folder, StoredClip
from asl_triton.batch.runner import BatchOptions
from asl_triton.batch.signals import GracefulShutdown
from asl_triton.batch.workers import Observer, too_many_failures_error
from asl_triton.errors import AslTritonError
from asl_triton.results import Failure

BLOCKS_AN_ACTOR = 16  # at least, where there are clips enough: what is in flight is lost when a run is killed
MOST_CLIPS_A_BLOCK = 64
ACTORS_A_WRITER = 8
POLL_S = 0.5
SAID_AGAIN_AFTER_S = 30.0  # several actors wait for the same server
STARTS_WITHIN_S = 60.0  # the first actor, or somebody is told
ENDS_WITHIN_S = 10.0  # Ray Data's threads, when Ray is gone


@contextlib.contextmanager
def translate_ray_errors() -> Iterator[None]:
    """Turn what Ray raises into a sentence.

    Raises:
        AslTritonError: it raised something.
    """
    try:
        yield
    except AslTritonError:
        raise
    except Exception as exc:
        raise AslTritonError(f"Ray gave up: {reason(exc)}") from exc


def reason(exc: BaseException) -> str:
    """Why Ray gave up, in a line: it tells the whole way of an exception, and what was raised first comes last."""
    said = str(exc)
    if missing := re.search(r"No module named '([\w.]+)'", said):
        return (
            f"a machine of the cluster has no Python module {missing[1]!r}: install this version of 'asl-triton[ray]' "
            "on all of them, in their image or by a runtime environment"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__


class ClusterCourse:
    """One run through the clips that are missing, by actors, into Parquet files.

    `failed` is how many of the clips that actors have told of are failures.
    """

    def __init__(
        self, assignment: WorkerSpec, parts: Folder, cluster: Cluster, options: BatchOptions, observer: Observer
    ) -> None:
        self.failed = 0
        self._assignment, self._parts, self._cluster, self._observer = assignment, parts, cluster, observer
        self._max_failures = options.max_failures
        self._hopeless: str | None = None
        self._names: set[str] = set()  # told of: a block whose actor died is told of again
        self._has_begun = False
        self._said: dict[str, float] = {}

    @property
    def told(self) -> int:
        """How many clips have been told of."""
        return len(self._names)

    def run(
        self, clips: Sequence[StoredClip], interruption: GracefulShutdown
    ) -> AslTritonError | KeyboardInterrupt | None:
        """Have the clips recognized; returns why it ended before the last, if it did."""
        if not clips:
            return None
        try:
            self._spread(clips, interruption)
        except (AslTritonError, KeyboardInterrupt) as exc:
            return exc
        if self._hopeless is not None:
            return AslTritonError(self._hopeless)
        return KeyboardInterrupt("interrupted") if interruption.is_requested else None

    def finish(self, signal_name: str) -> None:
        """Say what becomes of a run that is asked to stop."""
        self._observer.say(f"{signal_name}: finishing the clips that are under way; once more stops at once")

    def _spread(self, clips: Sequence[StoredClip], interruption: GracefulShutdown) -> None:
        import ray

        actors = self._cluster.actors(len(clips))
        board = ray.remote(ProgressActor).options(num_cpus=0).remote()
        writing = ParquetWriterThread(self._dataset(clips, actors, board), self._parts, actors)
        writing.start()
        try:
            self._follow(writing, board, interruption)
        except BaseException:
            writing.end()
            ray.shutdown()  # and with it the actors
            raise
        if writing.fault is not None:
            with translate_ray_errors():
                raise writing.fault

    def _follow(self, writing: "ParquetWriterThread", board: Any, interruption: GracefulShutdown) -> None:
        """Pass on what the actors tell, until all is written."""
        import ray

        began_s = time.monotonic()
        is_alive = True
        while is_alive:
            is_alive = not writing.is_over.wait(POLL_S)
            is_over = interruption.is_requested or self._hopeless is not None
            with translate_ray_errors():
                self._learn(ray.get(board.collect.remote(is_over)))
            if not self._has_begun and time.monotonic() - began_s > STARTS_WITHIN_S:
                self._say("no actor has begun yet: is a CPU of the cluster free? `ray status` tells")

    def _dataset(self, clips: Sequence[StoredClip], actors: int, board: Any) -> Any:
        import ray.data

        size = min(math.ceil(len(clips) / (actors * BLOCKS_AN_ACTOR)), MOST_CLIPS_A_BLOCK)
        blocks = [make_table(clips[start : start + size]) for start in range(0, len(clips), size)]
        return ray.data.from_blocks(blocks).map_batches(
            ClipWorker,
            fn_constructor_args=(self._assignment, board),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                size=min(actors, len(blocks)), max_concurrent_calls_per_actor=BLOCKS_AT_ONCE
            ),
            num_cpus=1,
        )

    def _learn(self, news: ProgressReport) -> None:
        self._has_begun = self._has_begun or news.has_begun
        for outcome in news.outcomes:
            if outcome.video not in self._names:
                self._names.add(outcome.video)
                self._observer.advance(outcome)
                self.failed += isinstance(outcome, Failure)
                if isinstance(outcome, Failure) and self.failed == self._max_failures:
                    self._hopeless = str(too_many_failures_error(self.failed, outcome))
        for sentence in news.sentences:
            self._say(sentence)
        self._hopeless = self._hopeless or news.hopeless

    def _say(self, sentence: str) -> None:
        """Say a sentence, unless it was just said with other figures."""
        kind, now_s = re.sub(r"\d+", "", sentence), time.monotonic()
        if now_s - self._said.get(kind, -math.inf) > SAID_AGAIN_AFTER_S:
            self._said[kind] = now_s
            self._observer.say(sentence)


class ParquetWriterThread(threading.Thread):
    """Ray at work, in a thread of its own, so that signals and news are seen; `fault` is what it raised, if it did.

    `is_over` is set at its end. (After a signal within `below`, Python 3.11 takes a thread for ended that is not.)
    """

    def __init__(self, dataset: Any, folder: Folder, actors: int) -> None:
        super().__init__(name="ray", daemon=True)
        self.fault: Exception | None = None
        self.is_over = threading.Event()
        self._dataset, self._folder = dataset, folder
        self._at_once = math.ceil(actors / ACTORS_A_WRITER)

    def end(self) -> None:
        """Have it end with an exception: Ray ends this process, if it is shut down while one of its threads asks it."""
        if self.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(KeyboardInterrupt))
            self.is_over.wait(ENDS_WITHIN_S)

    def run(self) -> None:
        file_system, path = self._folder.opened()
        try:
            # Without a CPU of their own: the actors have them all, and parts are small.
            self._dataset.write_parquet(
                path,
                filesystem=file_system,
                mode="append",
                concurrency=self._at_once,
                ray_remote_args={"num_cpus": 0},
            )
        except Exception as exc:  # to be told of by who waits
            self.fault = exc
        except KeyboardInterrupt:
            pass  # who ended it knows
        finally:
            self.is_over.set()
