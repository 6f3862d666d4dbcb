"""The actors on a cluster's machines, which recognize blocks of clips and report each outcome."""

import asyncio
import itertools
import math
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence

from asl_triton.batch.concurrency import ConcurrencyController
from asl_triton.batch.outage import backoff_s
from asl_triton.batch.ray.storage import Folder, StoredClip
from asl_triton.batch.workers import ClipWorkers, iterate
from asl_triton.decoding.admission import FrameBudget
from asl_triton.errors import AslTritonError, ContractError, ServerError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Outcome, Recognition

BLOCKS_AT_ONCE = 2  # per actor: one starts while the last clips of the other finish
REPORT_EVERY_S = 0.5
FETCHED_MIB = 512  # of remote clips in an actor's memory


class ClipActor:
    """Recognizes blocks of clips, two at a time, with one recognizer whose model must have this `identity`.

    At most `in_flight` clips are in flight; the default is the recognizer's limit. Everything runs in the actor's
    asyncio loop.
    """

    def __init__(
        self,
        make_recognizer: Callable[[], AsyncRecognizer],
        identity: dict[str, str],
        ranking: Ranking,
        source: Folder,
        wait_s: float,
        in_flight: int | None,
    ) -> None:
        self._make_recognizer, self._identity = make_recognizer, identity
        self._ranking, self._source = ranking, source
        self._wait_s, self._in_flight = wait_s, in_flight
        self._stopping = asyncio.Event()
        self._starting = asyncio.Lock()
        self._recognizer: AsyncRecognizer | None = None
        self._concurrency = ConcurrencyController(1, 1, 1)
        self._fetched = FrameBudget(FETCHED_MIB)

    async def start(self) -> None:
        """Connect, once. Waits up to `wait_s` for a server that is down.

        Raises:
            AslTritonError: this machine cannot see the clips or use the server.
        """
        async with self._starting:
            if self._recognizer is not None:
                return
            if self._source.path is None:
                self._source.open()  # raises if its package is not installed
            elif not self._source.path.exists():
                raise AslTritonError(
                    f"{socket.gethostname()}, a machine of the cluster, cannot see {self._source.address}: name a "
                    "folder that all its machines share, or an address such as s3://bucket/clips"
                )
            recognizer, began_s = self._make_recognizer(), time.monotonic()
            for attempt in itertools.count():
                try:
                    served = await recognizer.model()
                    break
                except ServerError as exc:
                    if time.monotonic() - began_s >= self._wait_s:
                        raise ServerError(f"on {socket.gethostname()}: {exc}") from exc
                await asyncio.sleep(backoff_s(attempt))
            if served.identity != self._identity:
                raise ContractError(
                    f"{recognizer.transport.address} serves a different {served.name} to {socket.gethostname()} than "
                    "to the machine that started the run, so the results would mix both"
                )
            most = max((self._in_flight or recognizer.in_flight) // BLOCKS_AT_ONCE, 1)
            self._concurrency = ConcurrencyController(most if self._in_flight else 1, most, recognizer.decoders)
            self._recognizer = recognizer

    async def recognize(self, clips: Sequence[StoredClip]) -> AsyncIterator[list[Outcome | str]]:
        """Yield a block's outcomes, and sentences to show, twice a second.

        If a clip fails, its outcome is a `Failure`. After `stop`, clips not in flight have no outcome.

        Raises:
            AslTritonError: the server or its model is unusable, or the server was down for too long.
        """
        assert self._recognizer is not None
        reports: list[Outcome | str] = []
        workers = ClipWorkers[StoredClip, Recognition](
            self._recognizer,
            self._recognize_clip,
            lambda clip, outcome: reports.append(outcome),
            self._concurrency,
            wait_s=self._wait_s,
            say=reports.append,
            stopping=self._stopping,
        )
        running = asyncio.create_task(workers.run(iterate(clips)))
        is_done = False
        while not is_done:
            is_done = bool((await asyncio.wait([running], timeout=REPORT_EVERY_S))[0])
            if reports:
                batch, reports[:] = reports.copy(), []  # before the yield, because more are added during it
                yield batch
        await running

    async def stop(self) -> None:
        """Finish the clips in flight and start no more."""
        self._stopping.set()

    async def close(self) -> None:
        """Disconnect and end the decoders."""
        if self._recognizer is not None:
            await self._recognizer.close()

    async def _recognize_clip(self, clip: StoredClip) -> Recognition:
        """Recognize a clip by its path, or by its bytes if it is remote."""
        assert self._recognizer is not None
        if self._source.path is not None:
            return await self._recognizer.recognize(clip.path, name=clip.name, **vars(self._ranking))
        async with self._fetched.share(math.ceil(clip.fingerprint.size / 2**20)):
            content = await asyncio.to_thread(self._source.read, clip, self._recognizer.limits.max_bytes)
            return await self._recognizer.recognize(content, name=clip.name, **vars(self._ranking))
