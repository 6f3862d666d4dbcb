"""Clips asked about side by side, whatever happens to one of them or to the server."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import tenacity

from asl_triton.batch.concurrency import ConcurrencyController
from asl_triton.batch.outage import ModelChangedError, OutageMonitor, calmly
from asl_triton.errors import AslTritonError, BusyError, ConnectionLostError, ServerError, VideoError
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure, Recognition, Timeline
from asl_triton.video.discovery import Clip, FileFingerprint

AnyClip = TypeVar("AnyClip", bound=Clip)
Result = TypeVar("Result", Recognition, Timeline)
Ask = Callable[[AsyncRecognizer, AnyClip], Awaitable[Result]]

DEFAULT_WAIT_S = 300.0  # of those who label archives overnight
# While it is asked about one clip: beyond that the clip may be why. Connections of bad networks break more often.
LOSSES_A_CLIP, BREAKS_A_CLIP = 3, 10
MENDING_S = (0.1, 0.5)  # until gRPC has connected anew


@dataclass(frozen=True)
class FailurePolicy:
    """What a run puts up with. `wait_s`: how long a server may be away, or have no room for a clip. `max_failures`:
    with how many failed clips it is over; None for any number."""

    wait_s: float = 0.0
    max_failures: int | None = None


class Observer:
    """Sees what a run does. The methods do nothing, and are there to be overridden."""

    def advance(self, outcome: Any) -> None:
        """A clip has its outcome."""

    def skip(self, count: int) -> None:
        """So many more clips need not be asked about: a run before did."""

    def move(self, video: str, share: float) -> None:
        """A clip was read so far, 0 to 1."""

    def say(self, sentence: str) -> None:
        """Something that who waits for the run wants to know."""


class ClipWorkers(Generic[AnyClip, Result]):
    """Ask about clips, as many at once as `pace` says, until there are no more or `stopping` is set.

    A clip that cannot be read or answered is a `Failure`. A server that is away or has no room is waited for. What is
    under way when `stopping` is set is finished, unless the server is what it waits for.
    """

    def __init__(
        self,
        recognizer: AsyncRecognizer,
        ask: Ask[AnyClip, Result],
        keep: Callable[[AnyClip, Result | Failure, FileFingerprint | None], None],
        *,
        pace: ConcurrencyController,
        patience: FailurePolicy | None = None,
        observer: Observer | None = None,
        stopping: asyncio.Event | None = None,
        by_content: bool = False,
    ) -> None:
        self.pace = pace
        self.patience = patience or FailurePolicy()
        self.under_way = 0
        self.failed = 0
        self._recognizer, self._by_content = recognizer, by_content
        self._ask: Ask[AnyClip, Result] = ask
        self._keep: Callable[[AnyClip, Result | Failure, FileFingerprint | None], None] = keep
        self._stopping = stopping or asyncio.Event()
        say = (observer or Observer()).say
        self._absence = OutageMonitor(recognizer, self.patience.wait_s, self._stopping, say)
        self._one_by_one = asyncio.Lock()
        self._hopeless: AslTritonError | None = None

    async def run(self, clips: AsyncIterator[AnyClip]) -> None:
        """Ask about clips, and hand the outcome of each to `keep` as soon as it is known.

        Raises:
            AslTritonError: the server or its model cannot be used, was away for too long, or too many clips failed;
                and what `keep` raises.
        """
        tasks: set[asyncio.Task[None]] = set()
        await self._absence.begin()
        try:
            while True:
                while len(tasks) < self.pace.limit and not (self._stopping.is_set() or self._hopeless):
                    if (clip := await anext(clips, None)) is None:
                        break
                    tasks.add(asyncio.create_task(self._work(clip)))
                    self.under_way = len(tasks)
                if not tasks:
                    break
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                self.under_way = len(tasks)
                if faults := [fault for task in done if (fault := task.exception())]:
                    raise faults[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._hopeless:
            raise self._hopeless
        with suppress(ServerError):  # it went away, and nothing more is asked of it
            await self._absence.verify_same_model(anyway=True)

    async def _work(self, clip: AnyClip) -> None:
        stamp = await asyncio.to_thread(
            FileFingerprint.of, clip.path, self._by_content
        )  # before it is read: it may change then
        outcome = await self._outcome(clip)
        if outcome is None:
            return
        self._keep(clip, outcome, stamp)
        if not isinstance(outcome, Failure):
            self.pace.record(outcome)
            return
        self.failed += 1
        if self.failed == self.patience.max_failures:
            self._hopeless = AslTritonError(too_many(self.failed, outcome))

    async def _outcome(self, clip: AnyClip) -> Result | Failure | None:
        """What is known of a clip in the end; None where that would have had to be waited for, and the run stops."""
        losses = breaks = 0
        while losses < LOSSES_A_CLIP and breaks < BREAKS_A_CLIP:
            # Alone of all that have lost the server: one of them may be why, and shall not take the others along.
            async with self._one_by_one if losses else nullcontext():
                try:
                    known = await self._answer(clip)
                    await self._absence.verify_same_model()
                    return known
                except ModelChangedError:
                    raise
                except VideoError as exc:
                    return Failure(clip.name, str(exc))
                except AslTritonError as exc:
                    is_broken = isinstance(exc, ConnectionLostError)
                    if is_broken:  # and may be whole again in a moment
                        await self._absence.nap(random.uniform(*MENDING_S))
                    is_gone = await self._absence.is_gone()
                    if self._stopping.is_set() and (is_gone or isinstance(exc, BusyError)):
                        return None
                    if not (is_gone or is_broken):
                        return Failure(clip.name, str(exc), rejected=isinstance(exc, BusyError))
                    losses, breaks = losses + is_gone, breaks + (not is_gone)
                    await self._absence.wait_until_back(exc)
        what = "the server went away" if losses else "the connection broke"
        return Failure(clip.name, f"{what} each of the {losses + breaks} times that it was asked about: see its log")

    async def _answer(self, clip: AnyClip) -> Result:
        """Ask, and where the server has no room ask again, more and more slowly."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(BusyError),
            wait=calmly,
            stop=self._absence.is_enough,
            sleep=self._absence.nap,
            before_sleep=lambda _state: self.pace.record_overload(),
            reraise=True,
        )
        known: Result = await retrying(self._ask, self._recognizer, clip)
        return known


def too_many(failed: int, last: Failure) -> str:
    """The sentence that ends a run of which so many clips have failed."""
    return f"{failed} clips have failed, as many as --max-failures allows. The last: {last.error}"
