"""The synchronous face of the recognizer."""

from collections.abc import Callable, Collection, Iterator
from types import TracebackType

from asl_triton.decoding.factory import DEFAULT_DECODE_TIMEOUT_S, DecodeIn
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import DEFAULT_TOP_K
from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.recognizer.async_client import DEFAULT_CURVES, AsyncRecognizer
from asl_triton.recognizer.event_loop import iterate, run
from asl_triton.recognizer.upload import Send
from asl_triton.results import Curve, Recognition, Segment, Step, Timeline
from asl_triton.transport.base import Transport
from asl_triton.transport.endpoints import DEFAULT_SERVER
from asl_triton.transport.security import Security
from asl_triton.transport.triton_grpc import DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT_S
from asl_triton.video.reader import Limits, Source


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
        send: Send = "frames",
        decoding: DecodeIn = "threads",
        decoders: int | None = None,
        decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
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
            send=send,
            decoding=decoding,
            decoders=decoders,
            decode_timeout_s=decode_timeout_s,
            transport=transport,
        )

    @property
    def asynchronous(self) -> AsyncRecognizer:
        """What is behind this face. Its coroutines belong to `background_loop`: `run` them."""
        return self._asynchronous

    def model(self, *, again: bool = False) -> ServedModel:
        """As `AsyncRecognizer.model`."""
        return run(self._asynchronous.model(again=again))

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

    def recognize_with_curves(
        self,
        video: Source,
        *,
        top_k: int = DEFAULT_TOP_K,
        vocabulary: Collection[str] | None = None,
        min_confidence: float = 0.0,
        name: str | None = None,
        curves: int = DEFAULT_CURVES,
    ) -> tuple[Recognition, tuple[Curve, ...]]:
        """As `AsyncRecognizer.recognize_with_curves`."""
        return run(
            self._asynchronous.recognize_with_curves(
                video, top_k=top_k, vocabulary=vocabulary, min_confidence=min_confidence, name=name, curves=curves
            )
        )

    def steps(
        self, video: Source, *, window: int | None = None, stride: int | None = None, name: str | None = None
    ) -> Iterator[Step]:
        """As `AsyncRecognizer.steps`; what is left is given up when the iterator is closed, or let go of."""
        return iterate(self._asynchronous.steps(video, window=window, stride=stride, name=name))

    def timeline(
        self,
        video: Source,
        *,
        rules: Segmentation | None = None,
        vocabulary: Collection[str] | None = None,
        window: int | None = None,
        stride: int | None = None,
        name: str | None = None,
        on_segment: Callable[[Segment], None] = lambda segment: None,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> Timeline:
        """As `AsyncRecognizer.timeline`; both functions are called in another thread."""
        return run(
            self._asynchronous.timeline(
                video,
                rules=rules,
                vocabulary=vocabulary,
                window=window,
                stride=stride,
                name=name,
                on_segment=on_segment,
                on_progress=on_progress,
            )
        )

    def close(self) -> None:
        """Let go of the connection and the decoders."""
        run(self._asynchronous.close())

    def __enter__(self) -> "Recognizer":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
