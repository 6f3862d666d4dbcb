"""Clips asked about side by side, whatever happens to one of them or to the server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import tenacity

from asl_triton.absence import Absence, calmly
from asl_triton.errors import AslTritonError, AwayError, BusyError, VideoError
from asl_triton.journal import Failure
from asl_triton.listing import Clip, Stamp
from asl_triton.pace import Pace
from asl_triton.predictions import Recognition
from asl_triton.recognizer import AsyncRecognizer
from asl_triton.timeline import Timeline

AnyClip = TypeVar("AnyClip", bound=Clip)
Known = TypeVar("Known", Recognition, Timeline)
Ask = Callable[[AsyncRecognizer, AnyClip], Awaitable[Known]]

DEFAULT_WAIT_S = 300.0  # of those who label archives overnight
LOSSES_A_CLIP = 3  # of the server while it is asked about one clip: then the clip may be why


@dataclass(frozen=True)
class Patience:
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


class Workers(Generic[AnyClip, Known]):
    """Ask about clips, as many at once as `pace` says, until there are no more or `stopping` is set.

    A clip that cannot be read or answered is a `Failure`. A server that is away or has no room is waited for. What is
    under way when `stopping` is set is finished, unless the server is what it waits for.
    """

    def __init__(
        self,
        recognizer: AsyncRecognizer,
        ask: Ask[AnyClip, Known],
        keep: Callable[[AnyClip, Known | Failure, Stamp | None], None],
        *,
        pace: Pace,
        patience: Patience | None = None,
        observer: Observer | None = None,
        stopping: asyncio.Event | None = None,
        by_content: bool = False,
    ) -> None:
        self.pace = pace
        self.patience = patience or Patience()
        self.under_way = 0
        self.failed = 0
        self._recognizer, self._by_content = recognizer, by_content
        self._ask: Ask[AnyClip, Known] = ask
        self._keep: Callable[[AnyClip, Known | Failure, Stamp | None], None] = keep
        self._stopping = stopping or asyncio.Event()
        say = (observer or Observer()).say
        self._absence = Absence(recognizer, self.patience.wait_s, self._stopping, say)
        self._hopeless: AslTritonError | None = None

    async def run(self, clips: AsyncIterator[AnyClip]) -> None:
        """Ask about clips, and hand the outcome of each to `keep` as soon as it is known.

        Raises:
            AslTritonError: the server or its model cannot be used, was away for too long, or too many clips failed;
                and what `keep` raises.
        """
        tasks: set[asyncio.Task[None]] = set()
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

    async def _work(self, clip: AnyClip) -> None:
        stamp = await asyncio.to_thread(Stamp.of, clip.path, self._by_content)  # before it is read: it may change then
        outcome = await self._outcome(clip)
        if outcome is None:
            return
        self._keep(clip, outcome, stamp)
        if not isinstance(outcome, Failure):
            self.pace.learn(outcome)
            return
        self.failed += 1
        if self.failed == self.patience.max_failures:
            self._hopeless = AslTritonError(
                f"{self.failed} clips have failed, as many as --max-failures allows. The last: {outcome.error}"
            )

    async def _outcome(self, clip: AnyClip) -> Known | Failure | None:
        """What is known of a clip in the end; None where that would have had to be waited for, and the run stops."""
        for _ in range(LOSSES_A_CLIP):
            try:
                return await self._answer(clip)
            except VideoError as exc:
                return Failure(clip.name, str(exc))
            except AslTritonError as exc:
                is_gone = await self._absence.is_gone()
                if self._stopping.is_set() and (is_gone or isinstance(exc, BusyError)):
                    return None
                if not (is_gone or isinstance(exc, AwayError)):  # which may be back by now
                    return Failure(clip.name, str(exc), rejected=isinstance(exc, BusyError))
                await self._absence.end(exc)
        return Failure(
            clip.name,
            f"the server went away each of the {LOSSES_A_CLIP} times that it was asked about {clip.name}: see its log",
        )

    async def _answer(self, clip: AnyClip) -> Known:
        """Ask, and where the server has no room ask again, more and more slowly."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(BusyError),
            wait=calmly,
            stop=self._absence.is_enough,
            sleep=self._absence.nap,
            before_sleep=lambda _state: self.pace.refused(),
            reraise=True,
        )
        known: Known = await retrying(self._ask, self._recognizer, clip)
        return known
