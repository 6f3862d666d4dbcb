"""`RecognitionBatch` on Ray: actors recognize clips; this process keeps the journal and writes the results."""

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from asl_triton.batch.ray.actor import BLOCKS_AT_ONCE, ClipActor
from asl_triton.batch.ray.cluster import Cluster, count_cpus, explain
from asl_triton.batch.ray.journal import StoredJournal
from asl_triton.batch.ray.storage import Folder, StoredClip
from asl_triton.batch.runner import ERRORS, BatchOptions, RecognitionBatch
from asl_triton.batch.signals import GracefulShutdown
from asl_triton.batch.workers import Observer, too_many_failures_error
from asl_triton.errors import AslTritonError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import AnyOutcome, Failure, Outcome

BLOCKS_PER_ACTOR = 16  # at least, if there are enough clips
MAX_CLIPS_PER_BLOCK = 32
MAX_DEATHS = 3  # of actors, with the same clip in flight
FLUSH_EVERY_S = 5.0
REPEAT_AFTER_S = 30.0  # the same sentence, because several actors wait for one server
STARTS_WITHIN_S = 60.0  # for the first actor, before a warning
CLOSES_WITHIN_S = 5.0


class RayBatch(RecognitionBatch):
    """Recognizes clips on a Ray cluster and writes the same files with the same content as `RecognitionBatch`.

    `run` sends `make_recognizer` to each actor. Actors report each outcome to this process, which keeps the journal.
    If an actor dies, its clips in flight are handed out again, one at a time.
    """

    _journal: StoredJournal

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
        journal = StoredJournal(output, clips)
        super().__init__(clips, journal.path.parent, formats, ranking, options, observer)
        self._journal = journal
        self._source, self._output = source, output
        self._clips_by_name = {clip.name: clip for clip in clips}
        self._cluster = cluster or Cluster()
        self._actors: list[Any] = []
        self._started: set[Any] = set()
        self._blocks: asyncio.Queue[list[StoredClip]] = asyncio.Queue()
        self._deaths: Counter[str] = Counter()
        self._failed = 0
        self._gave_up: AslTritonError | None = None
        self._is_stopping = False
        self._said_s: dict[str, float] = {}

    def write_outputs(self, outcomes: Iterator[AnyOutcome]) -> tuple[Path | str, ...]:
        files = super().write_outputs(outcomes)
        return files if self._output.path else self._output.upload(map(Path, files), [ERRORS])

    async def _recognize_missing(
        self, make_recognizer: Callable[[], AsyncRecognizer], shutdown: GracefulShutdown
    ) -> None:
        with shutdown.guard_task() as stopping:
            async with make_recognizer() as self.recognizer:
                served = await self.recognizer.model()
            self.ranking = self.ranking.with_threshold(served.card.min_confidence)
            if served.introduction:
                self.observer.say(served.introduction)
            key = self.build_job_key(served)
            if put_aside := self._journal.begin(key, fresh=self._options.fresh):
                self.observer.say(put_aside)
            if missing := self._list_missing():
                with self._cluster.join():
                    if not stopping.is_set():
                        await self._spread(missing, make_recognizer, served.identity, stopping)
            self._journal.flush()
        if self._gave_up is not None:
            raise self._gave_up

    def _list_missing(self) -> list[StoredClip]:
        """Return the clips that are new or have changed, then those that failed before."""
        missing: list[StoredClip] = []
        failed: list[StoredClip] = []
        for clip in self._clips_by_name.values():
            before = self._journal.fingerprint(clip.name)
            if self._journal.has_failed(clip.name):
                failed.append(clip)
            elif before is None or not before.is_same(clip.fingerprint):
                missing.append(clip)
                if before is not None:
                    self._journal.forget(clip.name)
        missing += failed
        self._fingerprints = {clip.name: clip.fingerprint for clip in missing}
        self._known_before = len(self._clips_by_name) - len(missing)
        self.observer.skip(self._known_before)
        return missing

    def _forget_changed_clips(self) -> None:
        """Do nothing, because `_list_missing` did this for all clips."""

    async def _spread(
        self,
        clips: Sequence[StoredClip],
        make_recognizer: Callable[[], AsyncRecognizer],
        identity: dict[str, str],
        stopping: asyncio.Event,
    ) -> None:
        """Start actors and hand out blocks of clips until all have an outcome or the run stops."""
        num_actors = self._cluster.workers or min(count_cpus(), len(clips))
        size = min(math.ceil(len(clips) / (num_actors * BLOCKS_PER_ACTOR)), MAX_CLIPS_PER_BLOCK)
        for start in range(0, len(clips), size):
            self._blocks.put_nowait(list(clips[start : start + size]))
        make_actor = ray.remote(ClipActor).options(num_cpus=1, max_restarts=-1)
        arguments = (make_recognizer, identity, self.ranking, self._source, self._options.wait_s)
        self._actors = [make_actor.remote(*arguments, self._options.in_flight) for _ in range(num_actors)]
        tasks = [asyncio.create_task(self._feed(actor)) for actor in self._actors * BLOCKS_AT_ONCE]
        tasks += [asyncio.create_task(self._watch(stopping)), asyncio.create_task(self._warn_if_none_starts())]
        try:
            await self._blocks.join()
            closing = asyncio.gather(*(actor.close.remote() for actor in self._started), return_exceptions=True)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(closing, CLOSES_WITHIN_S)
        finally:
            for task in tasks:
                task.cancel()
            for actor in self._actors:
                ray.kill(actor)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self, actor: Any) -> None:
        """Give an actor one block after another, until the task is cancelled or the run is given up."""
        try:
            is_up = False
            while True:
                if not is_up:  # waits for a CPU, and while Ray restarts it
                    await actor.start.options(max_task_retries=-1).remote()
                    self._started.add(actor)
                clips = await self._blocks.get()
                try:
                    is_up = await self._recognize_block(actor, clips)
                finally:
                    self._blocks.task_done()
        except Exception as exc:  # any exception, since nothing else would end the run
            self._give_up(explain(exc))

    async def _recognize_block(self, actor: Any, clips: Sequence[StoredClip]) -> bool:
        """Keep what an actor reports about a block. If it dies, its unanswered clips are handed out again. Returns
        whether it is alive."""
        is_alive = False
        with suppress(RayActorError):
            async for reports in actor.recognize.options(num_returns="streaming").remote(clips):
                for report in await reports:
                    if isinstance(report, str):
                        self._say(report)
                    else:
                        self._keep_once(report)
            is_alive = True
        for clip in clips:
            if clip.name in self._fingerprints and not self._is_stopping:
                self._deaths[clip.name] += 1
                if self._deaths[clip.name] < MAX_DEATHS:
                    self._blocks.put_nowait([clip])
                else:
                    self._keep_once(Failure(clip.name, f"its actor died all {MAX_DEATHS} times: see Ray's log"))
        return is_alive

    def _keep_once(self, outcome: Outcome) -> None:
        """Add an outcome to the journal, unless another actor already answered that clip."""
        if outcome.video not in self._fingerprints:
            return
        self.keep(self._clips_by_name[outcome.video], outcome)
        self._failed += isinstance(outcome, Failure)
        if isinstance(outcome, Failure) and self._failed == self._options.max_failures:
            self._give_up(too_many_failures_error(self._failed, outcome))

    def _give_up(self, error: AslTritonError) -> None:
        self._gave_up = self._gave_up or error
        self._stop()

    def _stop(self) -> None:
        """Hand out no more blocks, and let the actors finish the clips in flight."""
        if not self._is_stopping:
            self._is_stopping = True
            for actor in self._actors:
                actor.stop.remote()
        while not self._blocks.empty():
            self._blocks.get_nowait()
            self._blocks.task_done()

    async def _watch(self, stopping: asyncio.Event) -> None:
        """Flush the journal regularly until the run is asked to stop."""
        try:
            while not stopping.is_set():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stopping.wait(), FLUSH_EVERY_S)
                self._journal.flush()
        except AslTritonError as exc:
            self._give_up(exc)
        self._stop()

    async def _warn_if_none_starts(self) -> None:
        await asyncio.sleep(STARTS_WITHIN_S)
        if not self._started:
            self._say("no actor has started yet: does the cluster have a free CPU? Check `ray status`")

    def _announce_stop(self, signal_name: str) -> None:
        self.observer.say(f"{signal_name}: finishing the clips in flight. Press Ctrl-C again to stop at once")

    def _say(self, sentence: str) -> None:
        """Show a sentence, unless it was just shown with different numbers."""
        kind, now_s = re.sub(r"\d+", "", sentence), time.monotonic()
        if now_s - self._said_s.get(kind, -math.inf) > REPEAT_AFTER_S:
            self._said_s[kind] = now_s
            self.observer.say(sentence)
