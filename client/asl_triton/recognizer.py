"""The whole way, video -> clips -> transport -> predictions, as one short method; asyncio and sync faces over it."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

from asl_triton.clips import Window, crops, windows
from asl_triton.contract import FRAMES, LOGITS, ServedModel, read_model
from asl_triton.predictions import DEFAULT_TOP_K, Logits, Ranking, Recognition, pool, rank
from asl_triton.transport import (
    DEFAULT_IN_FLIGHT,
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_S,
    GrpcTransport,
    Security,
    Transport,
)
from asl_triton.video import Limits, Source, open_video

WINDOWS_AHEAD = 4  # of one clip, asked about at once: a long video is never held whole

T = TypeVar("T")


class AsyncRecognizer:
    """Asks a served recogniser what is signed in a clip.

    `model` may be left out where only one recogniser is served. Clips may be asked about at the same time; at most
    `in_flight` requests are. Close it, or use it in an `async with` block.
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
        began_s = time.perf_counter()
        with await self._decode(open_video, video, self.limits, name) as opened:
            cut = windows((c.image for c in crops(opened, served.preset, self.limits.max_frames)), served.preset)
            window_logits, decode_s = await self._ask_all(served, cut)
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
            wait_s=time.perf_counter() - began_s - decode_s,
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

    async def _ask_all(self, served: ServedModel, cut: Iterator[Window]) -> tuple[list[Logits], float]:
        """Ask about each window as soon as it is cut: their logits in order, and the seconds that cutting took."""
        asked: list[asyncio.Task[Logits]] = []
        decode_s = 0.0
        try:
            while True:
                began_s = time.perf_counter()
                window = await self._decode(next, cut, None)
                decode_s += time.perf_counter() - began_s
                if window is None:
                    return await asyncio.gather(*asked), decode_s
                asked.append(asyncio.create_task(self._ask(served, window)))
                if len(pending := [task for task in asked if not task.done()]) >= WINDOWS_AHEAD:
                    await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in asked:
                task.cancel()

    async def _ask(self, served: ServedModel, window: Window) -> Logits:
        tensor = served.tensor(window.frames)
        answers = await self.transport.infer(served.name, {FRAMES: tensor}, [LOGITS], self.priority)
        logits: Logits = answers[LOGITS][0]
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
        async def make() -> AsyncRecognizer:  # its locks belong to the loop that it is made in
            return AsyncRecognizer(
                server,
                model=model,
                security=security,
                timeout_s=timeout_s,
                in_flight=in_flight,
                limits=limits,
                priority=priority,
                transport=transport,
            )

        self._asynchronous = run(make())

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
