"""Video bytes in, glosses out, inside a server: what `recognize_sign` and `recognize_sign_stream` do."""

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

from asl_triton.catalogue import Catalogue
from asl_triton.clips import Span
from asl_triton.contract import ServedModel
from asl_triton.decoder import Decoders, Decoding
from asl_triton.decoder_process import DecoderLimits
from asl_triton.errors import AslTritonError, ContractError, LabelsError, ServerError
from asl_triton.inquiry import Inquiry
from asl_triton.memory import CropBudget
from asl_triton.predictions import DEFAULT_TOP_K, Prediction, Ranking, Recognition, pool, rank
from asl_triton.presets import Preset
from asl_triton.register import Inside, Register, UnknownRecogniserError
from asl_triton.video import Limits

T = TypeVar("T")
Status = Literal["INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"]  # of Triton's errors

VIDEO = "VIDEO"  # what messages call it
PARAMETER_PREFIX = "asl_triton."


@dataclass(frozen=True)
class ServiceLimits:
    """What one request may cost, and all of them together: the parameters `asl_triton.*` of the model's config."""

    max_bytes: int = 64 * 2**20
    max_frames: int = 10_000
    max_pixels: int = 4096 * 2160  # of one frame: 4K
    max_decode_s: int = 60  # of a processor's time
    max_memory_bytes: int = 2**30  # of a decoder
    requests_at_once: int = 8
    crops_at_once: int = 1024  # of all requests; a crop is 150 kB, of which the server holds a few copies

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "ServiceLimits":
        """Read what a config says; what it leaves out is as above.

        Raises:
            AslTritonError: one is no whole number above 0.
        """
        values = {}
        for limit in fields(cls):
            name = PARAMETER_PREFIX + limit.name
            if name not in parameters:
                continue
            if not parameters[name].isdecimal() or int(parameters[name]) == 0:
                raise AslTritonError(f"the parameter {name} is {parameters[name]!r}: give a whole number above 0")
            values[limit.name] = int(parameters[name])
        return cls(**values)

    @property
    def decoder(self) -> DecoderLimits:
        """Those of one video."""
        video = Limits(max_bytes=self.max_bytes, max_frames=self.max_frames, max_pixels=self.max_pixels)
        return DecoderLimits(video, self.max_decode_s, self.max_memory_bytes)


@dataclass(frozen=True)
class Question:
    """A request: a whole video file, and what is wanted of it. None is the default of each."""

    video: bytes = field(repr=False)
    top_k: int | None = None
    min_confidence: float | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise AslTritonError(f"TOP_K is {self.top_k}: ask for one gloss or more")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise AslTritonError(f"MIN_CONFIDENCE is {self.min_confidence:g}: it goes from 0 to 1")

    def ranking(self, served: ServedModel) -> Ranking:
        """What is wanted of this recogniser's logits.

        Raises:
            AslTritonError: more glosses than it knows; the default number, 10, is always well.
        """
        count = len(served.labels)
        if self.top_k is not None and self.top_k > max(count, DEFAULT_TOP_K):
            raise AslTritonError(f"TOP_K is {self.top_k}, and {served.name} knows {count} glosses: ask for no more")
        return Ranking(self.top_k or DEFAULT_TOP_K, None, self.min_confidence or 0.0)

    def wanted(self, predictions: tuple[Prediction, ...]) -> tuple[Prediction, ...]:
        """Those that reach the confidence asked for."""
        return tuple(p for p in predictions if p.confidence >= (self.min_confidence or 0.0))


@dataclass(frozen=True)
class Heard:
    """One window of a long video: what is signed between two times of it, best first."""

    start_s: float
    end_s: float
    predictions: tuple[Prediction, ...]


class SignService:
    """Answers requests on the event loop that it is first used on; several at once."""

    def __init__(self, repositories: Sequence[Path], server: Inside, limits: ServiceLimits) -> None:
        self.decoders = Decoders()
        self._server, self._limits = server, limits
        self._register = Register(Catalogue(repositories), server)
        self._budget = CropBudget(limits.crops_at_once)
        # One waits for each decoder, and one may be left behind by a request that was given up.
        self._threads = ThreadPoolExecutor(2 * limits.requests_at_once, thread_name_prefix="decoder")

    def close(self) -> None:
        """Let go of the decoders; nothing is answered any more."""
        self.decoders.close()
        self._threads.shutdown(wait=False)  # what it still has to close is closed

    async def recognize(self, question: Question) -> Recognition:
        """Recognise the sign in a clip, as `AsyncRecognizer.recognize` does, with the same answer.

        Raises:
            AslTritonError: as `status_of` tells apart.
        """
        chosen = await self._register.choose(question.model)
        served, preset = chosen.served, chosen.served.preset
        ranking = question.ranking(served)
        async with self._inquiry(question.video, served, preset) as inquiry, aclosing(inquiry.answers()) as answers:
            window_logits = [answer.logits async for answer in answers]
        await self._register.confirm(chosen)
        predictions = rank(pool(window_logits, preset), served.labels, preset, ranking)
        return Recognition(
            video=VIDEO,
            model=served.name,
            predictions=predictions,
            unsure=predictions[0].confidence < ranking.min_confidence,
            num_frames=inquiry.video.num_frames,
            duration_s=inquiry.video.duration_s,
            num_windows=inquiry.num_windows,
            decode_s=inquiry.decode_s,
            wait_s=inquiry.wait_s,
            warnings=tuple(inquiry.video.warnings),
        )

    async def listen(self, question: Question) -> AsyncGenerator[Heard, None]:
        """Recognise window by window: `window_frames` of the preset every `stride_frames`, a shorter video as a whole.

        Raises:
            AslTritonError: as `recognize` does, perhaps after some windows.
        """
        chosen = await self._register.choose(question.model)
        served = chosen.served
        ranking = question.ranking(served)
        preset = replace(served.preset, max_frames=served.preset.window_frames)
        async with self._inquiry(question.video, served, preset) as inquiry, aclosing(inquiry.answers()) as answers:
            async for answer in answers:
                await self._register.confirm(chosen)
                predictions = rank(answer.logits, served.labels, preset, ranking)
                yield Heard(*edges(answer.span), question.wanted(predictions))

    @asynccontextmanager
    async def _inquiry(self, video: bytes, served: ServedModel, preset: Preset) -> AsyncIterator[Inquiry]:
        """A video being decoded, for the length of the block, when there is room for its crops."""
        start = functools.partial(self.decoders.start, video, preset, self._limits.decoder, VIDEO)
        decoding = await self._in_thread(start, close_what_came)
        try:
            held = await self._in_thread(decoding.crops_held)
            async with self._budget.share(held * served.bytes_a_value):
                yield Inquiry(self._server, served, decoding, decoding.windows(), priority=0, decoders=self._threads)
        finally:
            decoding.end()  # now, for a thread may be waiting for it
            self._threads.submit(decoding.close)

    async def _in_thread(self, call: Callable[[], T], let_go: Callable[["Future[T]"], None] | None = None) -> T:
        """Call it in a thread; `let_go` gets what comes of it where nobody waits for that any more."""
        calling = self._threads.submit(call)
        try:
            return await asyncio.wrap_future(calling)
        except asyncio.CancelledError:
            if let_go is not None:
                calling.add_done_callback(let_go)
            raise


def close_what_came(starting: "Future[Decoding]") -> None:
    """Close a decoder that was started for nobody."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().close()


def edges(span: Span) -> tuple[float, float]:
    """When a window begins to be shown and when it ends, in seconds of the video."""
    return float(span.edges_s[0]), float(span.edges_s[-1])


def status_of(error: AslTritonError) -> Status:
    """Whose fault an error is, as Triton tells its callers."""
    if isinstance(error, UnknownRecogniserError):
        return "NOT_FOUND"
    if isinstance(error, ServerError):
        return "UNAVAILABLE"
    return "INTERNAL" if isinstance(error, ContractError | LabelsError) else "INVALID_ARG"
