"""The whole way, video -> clips -> transport -> predictions, as one short method; asyncio and sync faces over it."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from asl_triton.clips import Window, crops, windows
from asl_triton.contract import FRAMES, LOGITS, ServedModel, read_model
from asl_triton.errors import ContractError
from asl_triton.memory import CROPS_A_REQUEST, WINDOWS_AHEAD, CropBudget, crops_held
from asl_triton.predictions import DEFAULT_TOP_K, Logits, Ranking, Recognition, pool, rank
from asl_triton.transport import (
    DEFAULT_IN_FLIGHT,
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_S,
    GrpcTransport,
    Security,
    Transport,
)
from asl_triton.video import Limits, Source, Video, open_video

T = TypeVar("T")


class AsyncRecognizer:
    """Asks a served recogniser what is signed in a clip.

    `model` may be left out where only one recogniser is served. Clips may be asked about at the same time; at most
    `in_flight` of them are under way, fewer where they are long: memory is bounded by 48 frames for each. Close it, or
    use it in an `async with` block.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        model: str | None = None,
        security: Security | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        in_flight: int = DEFAULT_IN_FLIGHT,
        limits: Limits | None = None,
        priority: int = 0,
        transport: Transport | None = None,
    ) -> None:
        self.transport = transport or GrpcTransport(server, security=security, timeout_s=timeout_s, in_flight=in_flight)
        self.limits = limits or Limits()
        self.priority = priority
        self._name = model
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._clips = asyncio.Semaphore(in_flight)  # that are open
        self._budget = CropBudget(in_flight * CROPS_A_REQUEST)
        self._served: ServedModel | None = None
        self._reading = asyncio.Lock()

    async def model(self) -> ServedModel:
        """The recogniser's contract, read from the server once.

        Raises:
            ServerError, ContractError, LabelsError: the server is away, or serves nothing that fits.
        """
        async with self._reading:
            if self._served is None:
                self._served = await read_model(self.transport, self._name)
            return self._served

    async def recognize(
        self,
        video: Source,
        *,
        top_k: int = DEFAULT_TOP_K,
        vocabulary: Collection[str] | None = None,
        min_confidence: float = 0.0,
        name: str | None = None,
    ) -> Recognition:
        """Recognise the sign in a clip: a path, the bytes of a video file, or a binary file object.

        `vocabulary` ranks only its glosses; `min_confidence` marks the answer `unsure` below it; `name` is what the
        answer calls the video, its path if not given.

        Raises:
            VideoError: the clip cannot be read. ServerError, ContractError, LabelsError: as `model` does.
        """
        ranking = Ranking(top_k, vocabulary, min_confidence)
        served = await self.model()
        ranking.class_ids(served.labels)  # a wrong vocabulary is told before a clip is decoded
        async with self._clips:
            with await self._open(video, name) as opened:
                held = crops_held(opened, served.preset) * served.bytes_a_value
                async with self._budget.share(held):
                    began_s = time.perf_counter()
                    images = (c.image for c in crops(opened, served.preset, self.limits.max_frames))
                    window_logits, decode_s = await self._ask_all(served, windows(images, served.preset))
                    wait_s = time.perf_counter() - began_s - decode_s
        predictions = rank(pool(window_logits, served.preset), served.labels, served.preset, ranking)
        return Recognition(
            video=opened.name,
            model=served.name,
            predictions=predictions,
            unsure=predictions[0].confidence < min_confidence,
            num_frames=opened.num_frames,
            duration_s=opened.duration_s,
            num_windows=len(window_logits),
            decode_s=decode_s,
            wait_s=wait_s,
            warnings=tuple(opened.warnings),
        )

    async def close(self) -> None:
        """Let go of the connection and the decoders."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        await self.transport.close()

    async def __aenter__(self) -> "AsyncRecognizer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self, video: Source, name: str | None) -> Video:
        opening = self._decoders.submit(open_video, video, self.limits, name)
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(close_what_came)
            raise

    async def _ask_all(self, served: ServedModel, cut: Iterator[Window]) -> tuple[list[Logits], float]:
        """Ask about each window as soon as it is cut: their logits in order, and the seconds that cutting took."""
        asked: list[asyncio.Task[Logits]] = []
        pending: set[asyncio.Task[Logits]] = set()
        decode_s = 0.0
        try:
            while True:
                window, seconds = await self._decode(timed_next, cut)
                decode_s += seconds
                if window is None:
                    return await asyncio.gather(*asked), decode_s
                asked.append(asyncio.create_task(self._ask(served, window)))
                pending.add(asked[-1])
                if len(pending) == WINDOWS_AHEAD:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()  # one that failed ends the clip
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, served: ServedModel, window: Window) -> Logits:
        tensor = served.tensor(window.frames)
        answers = await self.transport.infer(served.name, {FRAMES: tensor}, [LOGITS], self.priority)
        logits: Logits = answers[LOGITS][0]
        if logits.shape != (len(served.labels),):
            raise ContractError(
                f"{served.name} on {self.transport.address} answered with {logits.size} logits for "
                f"{len(served.labels)} glosses: it was changed meanwhile; try again"
            )
        if not np.isfinite(logits).all():
            raise ContractError(
                f"{served.name} on {self.transport.address} answered with logits that are no numbers: its weights are "
                "damaged, or beyond its precision; export it again with --precision fp32"
            )
        return logits

    async def _decode(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)


class Recognizer:
    """The sync face of `AsyncRecognizer`, with the same arguments. It may be called from several threads.

    >>> with Recognizer("localhost:8001") as recognizer:
    ...     recognition = recognizer.recognize("clip.mp4", top_k=10)
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        model: str | None = None,
        security: Security | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        in_flight: int = DEFAULT_IN_FLIGHT,
        limits: Limits | None = None,
        priority: int = 0,
        transport: Transport | None = None,
    ) -> None:
        self._asynchronous = AsyncRecognizer(
            server,
            model=model,
            security=security,
            timeout_s=timeout_s,
            in_flight=in_flight,
            limits=limits,
            priority=priority,
            transport=transport,
        )

    def model(self) -> ServedModel:
        """As `AsyncRecognizer.model`."""
        return run(self._asynchronous.model())

    def recognize(
        self,
        video: Source,
        *,
        top_k: int = DEFAULT_TOP_K,
        vocabulary: Collection[str] | None = None,
        min_confidence: float = 0.0,
        name: str | None = None,
    ) -> Recognition:
        """As `AsyncRecognizer.recognize`."""
        return run(
            self._asynchronous.recognize(
                video, top_k=top_k, vocabulary=vocabulary, min_confidence=min_confidence, name=name
            )
        )

    def close(self) -> None:
        """Let go of the connection and the decoders."""
        run(self._asynchronous.close())

    def __enter__(self) -> "Recognizer":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def close_what_came(opening: Future[Video]) -> None:
    """Close a video that was opened for nobody."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def timed_next(cut: Iterator[Window]) -> tuple[Window | None, float]:
    """The next window, or None behind the last, and the seconds that cutting it took."""
    began_s = time.perf_counter()
    return next(cut, None), time.perf_counter() - began_s


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the process's one background event loop: gRPC's asyncio does not bear several."""
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C among them: nothing goes on behind the caller's back
        future.cancel()
        raise


@cache
def background_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all sync faces, in a daemon thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="asl-triton", daemon=True).start()
    return loop
