"""What runs on a cluster's machines: actors that recognize blocks of clips, and the board that they report to."""

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import tenacity

from asl_triton.batch.concurrency import ConcurrencyController
from asl_triton.batch.ray.journal import ROWS, row
from asl_triton.batch.ray.storage import Folder, StoredClip
from asl_triton.batch.workers import ClipWorkers, iterate
from asl_triton.decoding.admission import FrameBudget
from asl_triton.errors import AslTritonError, ContractError, ServerError
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure, Outcome, Recognition

BLOCKS_AT_ONCE = 2  # of an actor: one begins while the other's last clips come
REPORT_EVERY_S = 1.0
FETCHED_MIB = 512  # of clips from elsewhere that an actor holds
CLIPS = pa.schema(
    [
        ("name", pa.string()),
        ("path", pa.binary()),  # names of files may be no text
        ("key", pa.binary()),
        ("stamp", pa.string()),
        ("size", pa.int64()),
    ]
)


def make_table(clips: Iterable[StoredClip]) -> pa.Table:
    """Clips as Ray carries them."""
    return pa.Table.from_pylist(
        [
            {
                "name": clip.name,
                "path": os.fsencode(clip.path),
                "key": os.fsencode(clip.key),
                "stamp": clip.stamp,
                "size": clip.size,
            }
            for clip in clips
        ],
        CLIPS,
    )


def parse_clips(table: pa.Table) -> list[StoredClip]:
    """The clips of a table again."""
    return [
        StoredClip(Path(os.fsdecode(one["path"])), one["name"], os.fsdecode(one["key"]), one["stamp"], one["size"])
        for one in table.to_pylist()
    ]


@dataclass(frozen=True)
class WorkerSpec:
    """What an actor does: ask about the clips of `source` by a recognizer of its own, which has to be of `identity`.

    `in_flight` clips at most are under way in an actor, where it is given. `run` is the number of this run.
    """

    recognizer: Callable[[], AsyncRecognizer]
    identity: dict[str, str]
    ranking: Ranking
    source: Folder
    output: Folder
    wait_s: float
    max_failures: int | None
    in_flight: int | None
    run: int


@dataclass
class ProgressReport:
    """What happened since the last time; `hopeless` says why the run has to end, if it has."""

    outcomes: list[Outcome] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    hopeless: str | None = None
    has_begun: bool = False

    def add(self, later: "ProgressReport") -> None:
        """Take up what happened afterwards."""
        self.outcomes += later.outcomes
        self.sentences += later.sentences
        self.hopeless = self.hopeless or later.hopeless
        self.has_begun = self.has_begun or later.has_begun


class ProgressActor:
    """Where actors report, and where they see that the run is to end: an actor itself, beside who started the run."""

    def __init__(self) -> None:
        self._news = ProgressReport()
        self._is_over = False

    def report(self, news: ProgressReport) -> bool:
        """Put up news; whether the run is to end."""
        self._news.add(news)
        self._is_over = self._is_over or news.hopeless is not None
        return self._is_over

    def collect(self, is_over: bool) -> ProgressReport:
        """Take down the news, and say whether the run is to end."""
        self._is_over = self._is_over or is_over
        news, self._news = self._news, ProgressReport()
        return news


class ClipWorker:
    """Recognizes blocks of clips, two at once, with one recognizer; blocks that come when the run is to end are empty.

    A clip that cannot be read or answered is a failure, and the server is waited for, as `ClipWorkers` says. Whatever
    concerns all clips ends the run, and what is known of the block by then is kept.
    """

    def __init__(self, assignment: WorkerSpec, board: Any) -> None:
        self._assignment, self._board = assignment, board
        self._news = ProgressReport(has_begun=True)
        self._stopping = asyncio.Event()
        self._making = asyncio.Lock()
        self._recognizer: AsyncRecognizer | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._pace = ConcurrencyController(1, 1, 1)
        self._budget = FrameBudget(FETCHED_MIB)

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        """A row of `cluster_journal.ROWS` for each clip of a block that has an outcome."""
        self._reporting = self._reporting or asyncio.create_task(self._report_now_and_then())
        rows: list[dict[str, Any]] = []

        def keep(clip: StoredClip, outcome: Recognition | Failure) -> None:
            rows.append(row(clip, outcome, self._assignment.run))
            self._news.outcomes.append(outcome)

        if not self._stopping.is_set():
            try:
                workers = ClipWorkers[StoredClip, Recognition](
                    await self._ready(),
                    self._recognize,
                    keep,
                    self._pace,
                    wait_s=self._assignment.wait_s,
                    max_failures=self._assignment.max_failures,
                    say=self.say,
                    stopping=self._stopping,
                )
                await workers.run(iterate(parse_clips(block)))
            except AslTritonError as exc:
                self._news.hopeless = str(exc)
                self._stopping.set()
            await self._report()
        yield pa.Table.from_pylist(rows, ROWS)

    def say(self, sentence: str) -> None:
        """Have it said where the run was started."""
        self._news.sentences.append(sentence)

    async def _ready(self) -> AsyncRecognizer:
        """The recognizer; a server that is away when it is made is waited for.

        Raises:
            AslTritonError: this machine cannot do what is wanted, or the server cannot be used.
        """
        async with self._making:
            if self._recognizer is None:
                self._check_machine()
                recognizer = self._assignment.recognizer()
                patience = tenacity.stop_after_delay(self._assignment.wait_s)
                retrying = tenacity.AsyncRetrying(
                    retry=tenacity.retry_if_exception_type(ServerError),
                    wait=tenacity.wait_random_exponential(multiplier=0.5, min=0.1, max=5.0),
                    stop=patience,
                    reraise=True,
                )
                try:
                    served: ServedModel = await retrying(recognizer.model)
                except ServerError as exc:
                    raise ServerError(f"on {socket.gethostname()}: {exc}") from exc
                if served.identity != self._assignment.identity:
                    raise ContractError(
                        f"{recognizer.transport.address} serves another {served.name} to {socket.gethostname()} than "
                        "to who started the run: the results would be of both"
                    )
                at_once = max((self._assignment.in_flight or recognizer.in_flight) // BLOCKS_AT_ONCE, 1)
                least = at_once if self._assignment.in_flight else 1
                self._pace = ConcurrencyController(least, at_once, recognizer.decoders)
                self._recognizer = recognizer
        return self._recognizer

    def _check_machine(self) -> None:
        for folder in (self._assignment.source, self._assignment.output):
            if folder.path is None:
                folder.opened()
            elif not folder.path.exists():
                raise AslTritonError(
                    f"{socket.gethostname()}, a machine of the cluster, does not see {folder.address}: name a folder "
                    "that all its machines share, or an address such as s3://bucket/clips"
                )

    async def _recognize(self, clip: StoredClip) -> Recognition:
        """Ask about a clip: by its file or, from elsewhere, by its bytes."""
        assert self._recognizer is not None
        source, ranking = self._assignment.source, self._assignment.ranking
        if source.path is not None:
            return await self._recognizer.recognize(clip.path, name=clip.name, **vars(ranking))
        async with self._budget.share(math.ceil(clip.size / 2**20)):
            content = await asyncio.to_thread(source.read, clip, self._recognizer.limits.max_bytes)
            return await self._recognizer.recognize(content, name=clip.name, **vars(ranking))

    async def _report_now_and_then(self) -> None:
        while True:
            await self._report()
            await asyncio.sleep(REPORT_EVERY_S)

    async def _report(self) -> None:
        news, self._news = self._news, ProgressReport()
        if await self._board.report.remote(news):
            self._stopping.set()
