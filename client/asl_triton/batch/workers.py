"""Recognizes clips concurrently, and copes with bad clips and server outages."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from asl_triton.batch.concurrency import ConcurrencyController
from asl_triton.batch.outage import ModelChangedError, OutageMonitor, backoff_s
from asl_triton.errors import AslTritonError, BusyError, ConnectionLostError, ServerError, VideoError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure, Outcome, Recognition, Timeline
from asl_triton.video.discovery import Clip

AnyClip = TypeVar("AnyClip", bound=Clip)
Result = TypeVar("Result", Recognition, Timeline)

DEFAULT_WAIT_S = 300.0  # long enough for archives that run overnight
# Per clip. Beyond these, the clip itself may be the cause. On bad networks, connections break more often.
MAX_OUTAGES, MAX_BREAKS = 3, 10
RECONNECT_S = (0.1, 0.5)  # until gRPC has reconnected


class Observer:
    """Watches a run. The methods do nothing; override those you need."""

    def advance(self, outcome: Any) -> None:
        """Handle the outcome of a clip."""

    def skip(self, count: int) -> None:
        """Handle `count` more clips that an earlier run already answered."""

    def move(self, video: str, share: float) -> None:
        """Handle the progress of reading a clip, 0 to 1."""

    def say(self, sentence: str) -> None:
        """Handle a message for the user."""


class ClipWorkers(Generic[AnyClip, Result]):
    """Calls `recognize` for each clip, `concurrency.limit` at a time, and `keep` with each outcome.

    If a clip fails, its outcome is a `Failure`. If the server is down or too busy, clips wait for it up to `wait_s`.
    The run is given up after `max_failures` failed clips. When `stopping` is set, clips in flight are finished, unless
    they wait for the server.
    """

    def __init__(
        self,
        recognizer: AsyncRecognizer,
        recognize: Callable[[AnyClip], Awaitable[Result]],
        keep: Callable[[AnyClip, Result | Failure], None],
        concurrency: ConcurrencyController,
        *,
        wait_s: float = 0.0,
        max_failures: int | None = None,
        say: Callable[[str], None] = lambda sentence: None,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self.concurrency = concurrency
        self.under_way = 0
        self.failed = 0
        self._recognize: Callable[[AnyClip], Awaitable[Result]] = recognize
        self._keep: Callable[[AnyClip, Result | Failure], None] = keep
        self._wait_s, self._max_failures = wait_s, max_failures
        self._stopping = stopping or asyncio.Event()
        self._outage = OutageMonitor(recognizer, wait_s, self._stopping, say)
        self._one_by_one = asyncio.Lock()
        self._gave_up: AslTritonError | None = None

    async def run(self, clips: AsyncIterator[AnyClip]) -> None:
        """Recognize clips until there are no more or the run stops.

        Raises:
            AslTritonError: the server or its model is unusable, the server was down for too long, or too many clips
                failed; and whatever `keep` raises.
        """
        tasks: set[asyncio.Task[None]] = set()
        await self._outage.start()
        try:
            while True:
                while len(tasks) < self.concurrency.limit and not (self._stopping.is_set() or self._gave_up):
                    if (clip := await anext(clips, None)) is None:
                        break
                    tasks.add(asyncio.create_task(self._process(clip)))
                    self.under_way = len(tasks)
                if not tasks:
                    break
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                self.under_way = len(tasks)
                if errors := [error for task in done if (error := task.exception())]:
                    raise errors[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._gave_up:
            raise self._gave_up
        with suppress(ServerError):  # it went down, but it is no longer needed
            await self._outage.verify_same_model(force=True)

    async def _process(self, clip: AnyClip) -> None:
        """Recognize a clip and keep its outcome, unless the run stops while the clip waits for the server."""
        tries = Tries()
        outcome: Result | Failure | None = None
        while outcome is None and not tries.are_given_up:
            # Retry clips that lost the server one at a time, because one of them may be the cause.
            async with self._one_by_one if tries.outages else nullcontext():
                tries.try_began_s = time.monotonic()
                try:
                    result = await self._recognize(clip)
                    await self._outage.verify_same_model()
                    outcome = result
                except ModelChangedError:
                    raise
                except VideoError as exc:
                    outcome = Failure(clip.name, str(exc))
                except AslTritonError as exc:
                    outcome = await self._wait_after(exc, clip, tries)
        if outcome is None:
            return
        self._keep(clip, outcome)
        if not isinstance(outcome, Failure):
            self.concurrency.record(outcome)
            return
        self.failed += 1
        if self.failed == self._max_failures:
            self._gave_up = too_many_failures_error(self.failed, outcome)

    async def _wait_after(self, error: AslTritonError, clip: AnyClip, tries: "Tries") -> Failure | None:
        """Wait until the clip may be tried again. Returns a failure if it should not be."""
        is_busy, is_broken = isinstance(error, BusyError), isinstance(error, ConnectionLostError)
        if is_busy and time.monotonic() - tries.began_s < self._wait_s and not self._stopping.is_set():
            self.concurrency.record_overload()
            await self._outage.sleep(backoff_s(tries.refusals))
            tries.refusals += 1
            return None
        if is_broken:
            await self._outage.sleep(random.uniform(*RECONNECT_S))
        is_gone = await self._outage.is_gone()
        if self._stopping.is_set() and (is_gone or is_busy):
            tries.are_given_up = True
            return None
        # A request that is lost in an outage may time out only after the server is back.
        if not (is_gone or is_broken or self._outage.was_gone_since(tries.try_began_s)):
            return Failure(clip.name, str(error), rejected=is_busy)
        tries.outages, tries.breaks = tries.outages + is_gone, tries.breaks + (not is_gone)
        await self._outage.wait_until_back(error)
        if tries.outages < MAX_OUTAGES and tries.breaks < MAX_BREAKS:
            return None
        what = "the server went away" if tries.outages else "the connection broke"
        count = tries.outages + tries.breaks
        return Failure(clip.name, f"{what} each of the {count} times that this clip was sent: see the server's log")


@dataclass
class Tries:
    """How a clip's earlier tries ended: the server was too busy or down, or the connection broke."""

    began_s: float = field(default_factory=time.monotonic)
    try_began_s: float = 0.0  # the last one
    refusals: int = 0
    outages: int = 0
    breaks: int = 0
    are_given_up: bool = False


def too_many_failures_error(failed: int, last: Failure) -> AslTritonError:
    """Return the error that ends a run in which this many clips have failed."""
    return AslTritonError(f"{failed} clips have failed, as many as --max-failures allows. The last: {last.error}")


async def recognize_many(
    make_recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[AnyClip],
    ranking: Ranking,
    clips_at_once: int,
    keep: Callable[[AnyClip, Outcome], None],
) -> None:
    """Recognize clips without a journal, `clips_at_once` at a time. `keep` gets each outcome as soon as it is known.

    Raises:
        AslTritonError: the server or its model is unusable. ServerError: the server went down. And whatever `keep`
            raises.
    """
    async with make_recognizer() as recognizer:
        ranking.class_ids((await recognizer.model()).labels)  # reports a wrong vocabulary before any clip is read

        async def recognize(clip: AnyClip) -> Recognition:
            return await recognizer.recognize(
                clip.path, name=clip.name, signer=clip.signer, excerpt=clip.excerpt, **vars(ranking)
            )

        concurrency = ConcurrencyController(clips_at_once, clips_at_once, recognizer.decoders)
        await ClipWorkers[AnyClip, Recognition](recognizer, recognize, keep, concurrency).run(iterate(clips))


async def iterate(clips: Iterable[AnyClip]) -> AsyncIterator[AnyClip]:
    """Iterate over clips as `ClipWorkers.run` takes them."""
    for clip in clips:
        yield clip
