"""Video bytes in, glosses out, inside a server: what `recognize_sign` and `recognize_sign_stream` do."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

from asl_triton.decoding.admission import Admission
from asl_triton.decoding.base import WindowingOptions
from asl_triton.decoding.pool import DecoderPool
from asl_triton.decoding.worker import DecoderLimits
from asl_triton.errors import AslTritonError, ContractError, LabelsError, ServerError
from asl_triton.models.golden import render_golden
from asl_triton.models.recognize_sign import VIDEO
from asl_triton.models.repository import ModelOnDisk
from asl_triton.models.served import FRAMES, LOGITS, ServedModel
from asl_triton.postprocessing.ranking import DEFAULT_TOP_K, Ranking, rank
from asl_triton.postprocessing.stitching import with_window
from asl_triton.presets import Preset
from asl_triton.recognizer.pipeline import ClipPipeline, InferenceClient, run_recognition
from asl_triton.results import Prediction, Recognition, SignerBox
from asl_triton.video.reader import Limits

Status = Literal["INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"]  # of Triton's errors

PARAMETER_PREFIX = "asl_triton."


@dataclass(frozen=True)
class ServiceLimits:
    """Limits for one request and for all of them together: the parameters `asl_triton.*` of the model's config."""

    max_bytes: int = 64 * 2**20
    max_frames: int = 10_000
    max_pixels: int = 4096 * 2160  # of one frame: 4K
    max_decode_s: int = 60  # processor time
    max_memory_bytes: int = 2**30  # per decoder
    requests_at_once: int = 8
    crops_at_once: int = 1024  # of all requests; a crop is 150 kB, and the server holds a few copies of it

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "ServiceLimits":
        """Read the limits from a config. Missing ones have the defaults above.

        Raises:
            AslTritonError: a limit is not a whole number above 0.
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
        """The limits for one video."""
        return Limits(max_bytes=self.max_bytes, max_frames=self.max_frames, max_pixels=self.max_pixels)

    @property
    def decoder(self) -> DecoderLimits:
        """The limits for decoding a video. Each video gets its own process, because requests come from different
        strangers, and a video that takes over its decoder must not see or falsify the next one."""
        return DecoderLimits(self.max_decode_s, max_memory_bytes=self.max_memory_bytes)


@dataclass(frozen=True)
class StreamedWindow:
    """One window of a long video: the glosses signed between `start_s` and `end_s`, best first."""

    start_s: float
    end_s: float
    predictions: tuple[Prediction, ...]


class UnknownModelError(ContractError):
    """No model of that name is served, or no model at all."""


class InProcessServer(InferenceClient, Protocol):
    """A server as one of its own models sees it."""

    async def is_ready(self, model: str) -> bool:
        """Return whether another model is served."""


class SignService:
    """Answers requests, several at once, on the event loop that it is first used on.

    `models` are the models in the server's repositories when it started. Nothing is loaded later, so changes to a
    folder have no effect here.
    """

    def __init__(
        self, models: Mapping[str, ModelOnDisk | AslTritonError], server: InProcessServer, limits: ServiceLimits
    ) -> None:
        self.decoders = DecoderPool(limits.decoder)
        self._models, self._server, self._limits = models, server, limits
        self._checked: set[str] = set()  # models that gave the answer in their folder
        self._checking = asyncio.Lock()
        # One thread waits for each decoder, and a canceled request may leave one behind.
        self._threads = ThreadPoolExecutor(2 * limits.requests_at_once, thread_name_prefix="decoder")
        self._admission = Admission(limits.requests_at_once, self.decoders, self._threads, crops=limits.crops_at_once)

    def close(self) -> None:
        """Close the decoders. No request can be answered after that."""
        self.decoders.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def recognize(
        self,
        video: bytes,
        top_k: int | None = None,
        min_confidence: float | None = None,
        model: str | None = None,
        signer: SignerBox | None = None,
    ) -> Recognition:
        """Recognize the sign in a video file, as `AsyncRecognizer.recognize` does, with the same answer.

        None stands for the default of each argument; `signer` is the signer's box. Only glosses that reach
        `min_confidence` are among the predictions, possibly none. If it is None, all are, and the model's own threshold
        decides whether the answer is unsure.

        Raises:
            AslTritonError: the request failed; `get_grpc_status` says whose fault it is.
        """
        served = await self.choose_model(model)
        ranking = make_ranking(served, top_k, min_confidence)
        async with self._open(video, served, served.preset, signer) as pipeline:
            recognition = await run_recognition(pipeline, ranking, ranking.class_ids(served.labels))
        return replace(recognition, predictions=keep_confident(recognition.predictions, ranking))

    async def recognize_windows(
        self,
        video: bytes,
        top_k: int | None = None,
        min_confidence: float | None = None,
        model: str | None = None,
        signer: SignerBox | None = None,
    ) -> AsyncGenerator[StreamedWindow, None]:
        """Recognize by windows: the preset's `window_frames` every `stride_frames`. A shorter video is one window.

        Raises:
            AslTritonError: as `recognize` does, possibly after some windows.
        """
        served = await self.choose_model(model)
        ranking = make_ranking(served, top_k, min_confidence)
        preset = with_window(served.preset)
        class_ids = ranking.class_ids(served.labels)
        async with self._open(video, served, preset, signer) as pipeline, aclosing(pipeline.iter_windows()) as windows:
            async for window in windows:
                predictions = rank(window.logits, served.labels, preset, class_ids, ranking.top_k)
                start_s, *_, end_s = window.timing.edges_s
                yield StreamedWindow(float(start_s), float(end_s), keep_confident(predictions, ranking))

    @asynccontextmanager
    async def _open(
        self, video: bytes, served: ServedModel, preset: Preset, signer: SignerBox | None
    ) -> AsyncIterator[ClipPipeline]:
        """Wait until there is room for a video's crops, then yield its pipeline; the video is open for the block."""
        options = WindowingOptions(preset, self._limits.video, refuses_early=True, signer=signer, finds_signer=True)
        async with self._admission.open(video, options, name=VIDEO, bytes_a_value=served.bytes_per_value) as session:
            yield ClipPipeline(self._server, served, session, priority=0, threads=self._threads)

    async def choose_model(self, name: str | None) -> ServedModel:
        """Return the model of that name, or the only one that is served.

        Raises:
            UnknownModelError: the model is not served, or none is. AslTritonError: several are, and no name was given.
            ServerError, ContractError, LabelsError: the folder is damaged, or does not match the served model.
        """
        if name is None or name not in self._models or not await self._server.is_ready(name):
            ready = [other for other in self._models if await self._server.is_ready(other)]
            if name is not None:
                raise UnknownModelError(
                    f"this server has no model {name!r}: its models are {', '.join(ready) or 'none'}"
                )
            if not ready:
                raise UnknownModelError(
                    "this server has no model: add one to its model repository with `asl-triton export`"
                )
            if len(ready) > 1:
                raise AslTritonError(
                    f"this server has {len(ready)} models: name one in the request's parameter `model` "
                    f"({', '.join(ready)})"
                )
            name = ready[0]
        model = self._models[name]
        if isinstance(model, AslTritonError):
            raise model.with_traceback(None)
        if name not in self._checked:
            async with self._checking:
                if name not in self._checked:
                    await self._check_golden(model)
                    self._checked.add(name)
        return model.served

    async def _check_golden(self, model: ModelOnDisk) -> None:
        """Check that a model gives the answer in its folder, which may have changed while the server loaded it.

        Raises:
            ServerError: the answer is different, or there is none.
        """
        if model.golden is None:
            return
        name, frames = model.served.name, render_golden(model.golden.num_frames)
        answers = await self._server.infer(name, {FRAMES: model.served.make_input(frames)}, [LOGITS])
        if not model.matches_golden(answers[LOGITS][0]):
            raise ServerError(
                f"{name} does not give the answer in its folder: the folder was changed while the server started. "
                "Restart the server"
            )


def make_ranking(served: ServedModel, top_k: int | None, min_confidence: float | None) -> Ranking:
    """Make the ranking for a request; None stands for the default of each argument.

    Raises:
        AslTritonError: `top_k` is below 1, or above what the model knows (10, the default, is always accepted), or
            `min_confidence` is not between 0 and 1.
    """
    count = len(served.labels)
    if top_k is not None and top_k < 1:
        raise AslTritonError(f"TOP_K is {top_k}: it must be at least 1")
    if top_k is not None and top_k > max(count, DEFAULT_TOP_K):
        raise AslTritonError(f"TOP_K is {top_k}, but {served.name} knows only {count} glosses")
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise AslTritonError(f"MIN_CONFIDENCE is {min_confidence:g}: it must be between 0 and 1")
    return Ranking(top_k or DEFAULT_TOP_K, None, min_confidence)


def keep_confident(predictions: tuple[Prediction, ...], ranking: Ranking) -> tuple[Prediction, ...]:
    """Return the predictions that reach the requested confidence, or all of them if none was requested."""
    least = ranking.min_confidence or 0.0
    return tuple(prediction for prediction in predictions if prediction.confidence >= least)


def get_grpc_status(error: AslTritonError) -> Status:
    """Return the gRPC status of an error, which says whose fault it is."""
    if isinstance(error, UnknownModelError):
        return "NOT_FOUND"
    if isinstance(error, ServerError):
        return "UNAVAILABLE"
    return "INTERNAL" if isinstance(error, ContractError | LabelsError) else "INVALID_ARG"
