"""Video bytes in, glosses out, inside a server: what `recognize_sign` and `recognize_sign_stream` do."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from asl_triton.decoding.admission import Admission
from asl_triton.decoding.base import WindowingOptions
from asl_triton.decoding.pool import DecoderPool
from asl_triton.decoding.worker import DecoderLimits
from asl_triton.errors import AslTritonError, ContractError, LabelsError, ServerError
from asl_triton.models.repository import ModelRepository
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import DEFAULT_TOP_K, Ranking, rank
from asl_triton.presets import Preset
from asl_triton.recognizer.pipeline import ClipPipeline, run_recognition
from asl_triton.results import Prediction, Recognition
from asl_triton.triton_backend.registry import InProcessServer, ModelRegistry, UnknownModelError
from asl_triton.video.reader import Limits
from asl_triton.video.windows import WindowTiming

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
    def video(self) -> Limits:
        """What one video may be."""
        return Limits(max_bytes=self.max_bytes, max_frames=self.max_frames, max_pixels=self.max_pixels)

    @property
    def decoder(self) -> DecoderLimits:
        """What its decoding may cost. Each video gets a process of its own: requests come from different strangers, and
        a video that takes over its decoder must not see or falsify the next one's."""
        return DecoderLimits(self.max_decode_s, max_memory_bytes=self.max_memory_bytes)


@dataclass(frozen=True)
class RecognizeRequest:
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
        """What is wanted of this model's logits.

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
class StreamedWindow:
    """One window of a long video: what is signed between two times of it, best first."""

    start_s: float
    end_s: float
    predictions: tuple[Prediction, ...]


class SignService:
    """Answers requests on the event loop that it is first used on; several at once."""

    def __init__(self, repositories: Sequence[Path], server: InProcessServer, limits: ServiceLimits) -> None:
        self.decoders = DecoderPool(limits.decoder)
        self._server, self._limits = server, limits
        self._register = ModelRegistry(ModelRepository(repositories), server)
        # One waits for each decoder, and one may be left behind by a request that was given up.
        self._threads = ThreadPoolExecutor(2 * limits.requests_at_once, thread_name_prefix="decoder")
        self._admission = Admission(limits.requests_at_once, self.decoders, self._threads, crops=limits.crops_at_once)

    def close(self) -> None:
        """Let go of the decoders; nothing is answered any more."""
        self.decoders.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def recognize(self, question: RecognizeRequest) -> Recognition:
        """Recognize the sign in a clip, as `AsyncRecognizer.recognize` does, with the same answer.

        Raises:
            AslTritonError: as `status_of` tells apart.
        """
        chosen = await self._register.choose(question.model)
        served, preset = chosen.served, chosen.served.preset
        ranking = question.ranking(served)
        async with self._inquiry(question.video, served, preset) as inquiry:
            recognition = await run_recognition(inquiry, ranking, ranking.class_ids(served.labels))
        await self._register.confirm(chosen)
        return recognition

    async def recognize_windows(self, question: RecognizeRequest) -> AsyncGenerator[StreamedWindow, None]:
        """Recognize window by window: `window_frames` of the preset every `stride_frames`, a shorter video as a whole.

        Raises:
            AslTritonError: as `recognize` does, perhaps after some windows.
        """
        chosen = await self._register.choose(question.model)
        served = chosen.served
        ranking = question.ranking(served)
        preset = replace(served.preset, max_frames=served.preset.window_frames)
        async with (
            self._inquiry(question.video, served, preset) as inquiry,
            aclosing(inquiry.iter_windows()) as answers,
        ):
            async for answer in answers:
                await self._register.confirm(chosen)
                predictions = rank(
                    answer.logits, served.labels, preset, ranking.class_ids(served.labels), ranking.top_k
                )
                yield StreamedWindow(*compute_edges(answer.timing), question.wanted(predictions))

    @asynccontextmanager
    async def _inquiry(self, video: bytes, served: ServedModel, preset: Preset) -> AsyncIterator[ClipPipeline]:
        """A video being decoded, for the length of the block, when there is room for its crops."""
        cutting = WindowingOptions(preset, self._limits.video, refuses_early=True)
        async with self._admission.open(video, cutting, name=VIDEO, bytes_a_value=served.bytes_per_value) as reading:
            yield ClipPipeline(self._server, served, reading, priority=0, threads=self._threads)


def compute_edges(span: WindowTiming) -> tuple[float, float]:
    """When a window begins to be shown and when it ends, in seconds of the video."""
    return float(span.edges_s[0]), float(span.edges_s[-1])


def get_grpc_status(error: AslTritonError) -> Status:
    """Whose fault an error is, as Triton tells its callers."""
    if isinstance(error, UnknownModelError):
        return "NOT_FOUND"
    if isinstance(error, ServerError):
        return "UNAVAILABLE"
    return "INTERNAL" if isinstance(error, ContractError | LabelsError) else "INVALID_ARG"
