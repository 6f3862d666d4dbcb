"""Clips recognized side by side, whatever happens to one of them or to the server."""

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

DEFAULT_WAIT_S = 300.0  # for whoever labels archives overnight
# Per clip: beyond these the clip itself may be the cause. Connections over bad networks break more often.
MAX_OUTAGES, MAX_BREAKS = 3, 10
RECONNECT_S = (0.1, 0.5)  # until gRPC has reconnected


class Observer:
    """Watches a run. The methods do nothing; override those you need."""

    def advance(self, outcome: Any) -> None:
        """A clip has its outcome."""

    def skip(self, count: int) -> None:
        """An earlier run already answered `count` more clips."""

    def move(self, video: str, share: float) -> None:
        """A clip was read this far, 0 to 1."""

    def say(self, sentence: str) -> None:
        """Something happened that a person waiting for the run wants to know."""


class ClipWorkers(Generic[AnyClip, Result]):
    """Calls `recognize` for each clip, `concurrency.limit` at once, and `keep` with each outcome as soon as it is
    known.

    A clip that cannot be read or answered is a `Failure`. A server that is away or has no room is waited for, up to
    `wait_s`. After `max_failures` failed clips the run is given up. When `stopping` is set, what is under way is
    finished, unless it waits for the server.
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
            AslTritonError: the server or its model cannot be used, was away for too long, or too many clips failed; and
                whatever `keep` raises.
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
        with suppress(ServerError):  # it went away, and nothing more is asked of it
            await self._outage.verify_same_model(force=True)

    async def _process(self, clip: AnyClip) -> None:
        """Recognize a clip and keep its outcome, unless the run stops while the clip waits for the server."""
        tries = Tries()
        outcome: Result | Failure | None = None
        while outcome is None and not tries.are_given_up:
            # Clips that have lost the server try again one at a time: one of them may be the cause.
            async with self._one_by_one if tries.outages else nullcontext():
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
        """Wait until the clip may be tried again; a failure if it should not be."""
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
        if not (is_gone or is_broken):
            return Failure(clip.name, str(error), rejected=is_busy)
        tries.outages, tries.breaks = tries.outages + is_gone, tries.breaks + (not is_gone)
        await self._outage.wait_until_back(error)
        if tries.outages < MAX_OUTAGES and tries.breaks < MAX_BREAKS:
            return None
        what = "the server went away" if tries.outages else "the connection broke"
        count = tries.outages + tries.breaks
        return Failure(clip.name, f"{what} each of the {count} times that it was asked about: see its log")


@dataclass
class Tries:
    """How a clip's earlier tries ended: no room, the server gone, or the connection broken."""

    began_s: float = field(default_factory=time.monotonic)
    refusals: int = 0
    outages: int = 0
    breaks: int = 0
    are_given_up: bool = False


def too_many_failures_error(failed: int, last: Failure) -> AslTritonError:
    """The error that ends a run in which that many clips have failed."""
    return AslTritonError(f"{failed} clips have failed, as many as --max-failures allows. The last: {last.error}")


async def recognize_many(
    make_recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[AnyClip],
    ranking: Ranking,
    clips_at_once: int,
    keep: Callable[[AnyClip, Outcome], None],
) -> None:
    """Recognize clips without a journal, `clips_at_once` at a time; `keep` gets each outcome as soon as it is known.

    Raises:
        AslTritonError: the server or its model cannot be used. ServerError: it went away. And whatever `keep` raises.
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
