"""The asyncio client, which takes a video all the way to predictions."""

import asyncio
import copy
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from types import TracebackType

from asl_triton.decoding.admission import Admission
from asl_triton.decoding.base import WindowingOptions
from asl_triton.decoding.factory import DEFAULT_DECODE_TIMEOUT_S, SAFEST, DecodeIn, make_decoder_pool
from asl_triton.errors import AslTritonError
from asl_triton.models.served import ServedModel, read_model
from asl_triton.postprocessing.ranking import DEFAULT_TOP_K, Ranking
from asl_triton.postprocessing.segmentation import Segmentation, Segmenter
from asl_triton.postprocessing.stitching import with_window
from asl_triton.presets import Preset
from asl_triton.recognizer.pipeline import (
    ClipPipeline,
    iter_steps,
    run_embedding,
    run_recognition,
    run_recognition_with_curves,
    run_timeline,
)
from asl_triton.recognizer.upload import Send, VideoUploader
from asl_triton.results import Curve, Recognition, Segment, SignerBox, Step, Timeline
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton.teaching.embedding import Embedding
from asl_triton.teaching.transport import DictionaryTransport
from asl_triton.transport.base import Transport
from asl_triton.transport.endpoints import DEFAULT_SERVER
from asl_triton.transport.factory import make_transport
from asl_triton.transport.security import Security
from asl_triton.transport.triton_grpc import DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT_S
from asl_triton.video.excerpt import Excerpt
from asl_triton.video.preprocessing import Crop
from asl_triton.video.reader import LONG_VIDEO_LIMITS, Limits, Source

DEFAULT_CURVES = 5


class AsyncRecognizer:
    """Asks a served model what is signed in a clip.

    `model` is optional if the server has only one model. Calls may run concurrently. At most `in_flight` clips are in
    progress, fewer if they are long, because memory is limited to 48 frames per clip. Close the recognizer, or use it
    in an `async with` block.

    `send` is how `recognize` sends a clip to the server: as "frames", cropped here; as the whole "video" file, if the
    server has `recognize_sign`; or "auto", see `VideoUploader`. The answers are the same. Steps and curves need frames.

    `signer` is the signer's box in every video, unless a call gives its own. Without a box, `find_signer` looks for a
    face in the first frames of each clip, and for a timeline in the first frames of each shot. Presets that frame by
    the signer get the upper body. Other presets get a part of the frame if the signer is small or the video is taller
    than wide. The result says which part.

    With a `dictionary`, the recognizer answers with the signs taught there; `with_vocabulary` lets the model's own
    glosses compete with them. Clips are then always sent as frames.

    `decoders` is how many videos are decoded at once, by default the number of processors. On Linux they are decoded in
    "processes", so a damaged video that crashes its decoder, or hangs it for `decode_timeout_s`, affects only itself.
    On other systems, or if you ask for it, they are decoded in "threads" of this process. The answers are the same.
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
        signer: SignerBox | None = None,
        find_signer: bool = True,
        decoding: DecodeIn = SAFEST,
        decoders: int | None = None,
        decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
        dictionary: SignDictionary | None = None,
        with_vocabulary: bool = False,
        transport: Transport | None = None,
    ) -> None:
        self.transport = transport or make_transport(
            server, security=security, timeout_s=timeout_s, in_flight=in_flight
        )
        self._model_transport = self.transport  # to the model itself, without a dictionary
        if dictionary is not None:
            send = check_sends_frames(send)
            self.transport = DictionaryTransport(self.transport, dictionary, with_vocabulary=with_vocabulary)
        self.limits = limits or Limits()
        self.film_limits = limits or LONG_VIDEO_LIMITS  # for files that become timelines
        self.priority = priority
        self.signer, self.find_signer = signer, find_signer
        self.in_flight = in_flight
        self.decoders = decoders or os.cpu_count() or 1
        self._name = model
        self._decoder_pool = make_decoder_pool(decoding, decode_timeout_s)
        self._threads = ThreadPoolExecutor(self.decoders, thread_name_prefix="decode")
        self._admission = Admission(in_flight, self._decoder_pool, self._threads)
        self._uploader = VideoUploader(send, self.transport, self._admission, self.limits, priority=priority)
        self._served: ServedModel | None = None
        self._own_model: ServedModel | None = None  # the model that a dictionary's signs were taught with
        self._reading = asyncio.Lock()

    async def model(self, *, again: bool = False) -> ServedModel:
        """Return the model's contract, which is read from the server once, or once more if `again`.

        Raises:
            ServerError, ContractError, LabelsError: the server is unreachable, or has no suitable model.
        """
        async with self._reading:
            if self._served is None or again:
                self._served, self._own_model = await read_model(self.transport, self._name), None
            return self._served

    def renew(self) -> "AsyncRecognizer":
        """A recognizer that reads the model's contract again, on the same connection and decoders; close only one."""
        renewed = copy.copy(self)
        renewed._served, renewed._own_model, renewed._reading = None, None, asyncio.Lock()
        return renewed

    def with_dictionary(self, dictionary: SignDictionary, *, with_vocabulary: bool = False) -> "AsyncRecognizer":
        """Return a recognizer of taught signs that shares this one's connection and decoders. Close only this one.

        Raises:
            AslTritonError: this one sends video files.
        """
        taught = self.renew()
        taught.transport = DictionaryTransport(self._model_transport, dictionary, with_vocabulary=with_vocabulary)
        send = check_sends_frames(self._uploader.send)
        taught._uploader = VideoUploader(send, taught.transport, self._admission, self.limits, priority=self.priority)
        return taught

    async def embed(self, video: Source, *, name: str | None = None, signer: SignerBox | None = None) -> Embedding:
        """Return the embedding of a clip of one sign, as an example for a `SignDictionary`.

        Raises:
            VideoError: the clip cannot be read. ServerError, ContractError, LabelsError: as `model` does.
        """
        served = await self._read_own_model()
        options = self._clip(served.preset, signer)
        async with self._admission.open(video, options, name=name, bytes_a_value=served.bytes_per_value) as session:
            return await run_embedding(
                ClipPipeline(self._model_transport, served, session, priority=self.priority, threads=self._threads)
            )

    async def recognize(
        self,
        video: Source,
        *,
        top_k: int = DEFAULT_TOP_K,
        vocabulary: Collection[str] | None = None,
        min_confidence: float | None = None,
        name: str | None = None,
        signer: SignerBox | None = None,
        excerpt: Excerpt | None = None,
    ) -> Recognition:
        """Recognize the sign in a clip: a path, the bytes of a video file, or a binary file object.

        If `vocabulary` is given, only its glosses are ranked. The result is `unsure` if the best confidence is below
        `min_confidence`, by default the model's own threshold. `name` is the video's name in the result, by default its
        path. `signer` is the signer's box, and `excerpt` is the part of the video to recognize.

        Raises:
            VideoError: the clip cannot be read. ServerError, ContractError, LabelsError: as `model` does.
        """
        ranking, served = Ranking(top_k, vocabulary, min_confidence), await self.model()
        class_ids = ranking.class_ids(served.labels)  # a wrong vocabulary is reported before the clip is opened
        options = self._clip(served.preset, signer, excerpt)
        if self._uploader.send != "frames":
            video = await self._uploader.buffer(video)
            if await self._uploader.should_upload(video, served, options, name):
                return await self._uploader.recognize(video, served, options, ranking, class_ids, name)
        async with self._open(video, served, options, name) as pipeline:
            return await run_recognition(pipeline, ranking, class_ids)

    async def recognize_with_curves(
        self,
        video: Source,
        *,
        top_k: int = DEFAULT_TOP_K,
        vocabulary: Collection[str] | None = None,
        min_confidence: float | None = None,
        name: str | None = None,
        signer: SignerBox | None = None,
        find_signer: bool | None = None,
        curves: int = DEFAULT_CURVES,
        on_start: Callable[[ClipPipeline], None] = lambda pipeline: None,
    ) -> tuple[Recognition, tuple[Curve, ...]]:
        """Recognize like `recognize`, and return the confidences of the `curves` best glosses over time as well.

        Both come from the same requests. Use it for clips only, because all steps are kept until the end. `find_signer`
        defaults to the recognizer's own. `on_start` is called with the pipeline when decoding starts; poll it to show
        progress.
        """
        ranking, served = Ranking(top_k, vocabulary, min_confidence), await self.model()
        class_ids = ranking.class_ids(served.labels)
        options = self._clip(served.preset, signer, find_signer=find_signer)
        async with self._open(video, served, options, name) as pipeline:
            on_start(pipeline)
            return await run_recognition_with_curves(pipeline, ranking, class_ids, curves)

    async def crops(
        self,
        video: Source,
        times_s: Sequence[float],
        *,
        signer: SignerBox | None = None,
        find_signer: bool | None = None,
    ) -> list[Crop]:
        """Return the crops that the network sees at these times, with the same options as `recognize_with_curves`.

        Times before the first crop get the first one, times after the last crop the last one. The clip is decoded
        again, up to the latest time. The server is contacted only if the model's contract was not read yet.

        Raises:
            VideoError: the clip cannot be read. ServerError, ContractError, LabelsError: as `model` does.
        """
        served = await self.model()
        options = self._clip(served.preset, signer, find_signer=find_signer)
        async with self._open(video, served, options, None) as pipeline:
            return await pipeline.read_crops(times_s)

    async def steps(
        self,
        video: Source,
        *,
        window: int | None = None,
        stride: int | None = None,
        name: str | None = None,
        signer: SignerBox | None = None,
    ) -> AsyncGenerator[Step, None]:
        """Yield the steps of a video of any length while it is decoded, in bounded memory.

        The video is cut into windows of `window` frames, one every `stride` frames; both default to the preset's. If
        you leave the iterator early, close it with `contextlib.aclosing`.

        Raises:
            VideoError: the video cannot be read. ServerError, ContractError, LabelsError: as `model` does.
            AslTritonError: `window` or `stride` is out of range.
        """
        served = await self.model()
        preset = with_window(served.preset, window, stride)
        async with (
            self._open(video, served, self._film(video, preset, signer), name) as pipeline,
            aclosing(iter_steps(pipeline, preset)) as steps,
        ):
            async for step in steps:
                yield step

    async def timeline(
        self,
        video: Source,
        *,
        rules: Segmentation | None = None,
        vocabulary: Collection[str] | None = None,
        window: int | None = None,
        stride: int | None = None,
        name: str | None = None,
        signer: SignerBox | None = None,
        on_segment: Callable[[Segment], None] = lambda segment: None,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> Timeline:
        """Find the signs in a video of any length and when they are signed, by applying `rules` to its `steps`.

        If `vocabulary` is given, only its glosses are looked for. `on_segment` is called with each segment as soon as
        it is known, and `on_progress` with the share of the video read so far, 0 to 1, if its container states its
        length.

        Raises:
            VideoError, ServerError, ContractError, LabelsError, AslTritonError: as `steps` and `recognize` do.
        """
        served = await self.model()
        preset = with_window(served.preset, window, stride)
        segmenter = Segmenter(served.labels, rules, Ranking(vocabulary=vocabulary).class_ids(served.labels).tolist())
        async with self._open(video, served, self._film(video, preset, signer), name) as pipeline:
            return await run_timeline(pipeline, preset, segmenter, on_segment, on_progress)

    async def _read_own_model(self) -> ServedModel:
        """Return the contract of the model itself, with its own glosses. It is read from the server once."""
        if self.transport is self._model_transport:
            return await self.model()
        async with self._reading:
            if self._own_model is None:
                self._own_model = await read_model(self._model_transport, self._name)
            return self._own_model

    def _clip(
        self,
        preset: Preset,
        signer: SignerBox | None,
        excerpt: Excerpt | None = None,
        find_signer: bool | None = None,
    ) -> WindowingOptions:
        finds = self.find_signer if find_signer is None else find_signer
        return WindowingOptions(preset, self.limits, signer=signer or self.signer, finds_signer=finds, excerpt=excerpt)

    def _film(self, video: Source, preset: Preset, signer: SignerBox | None) -> WindowingOptions:
        """Return the options for a film. Files may be longer than a clip; videos in memory keep a clip's limits."""
        is_file = isinstance(video, str | os.PathLike)
        limits = self.film_limits if is_file else self.limits
        return WindowingOptions(
            preset, limits, is_film=True, signer=signer or self.signer, finds_signer=self.find_signer
        )

    @asynccontextmanager
    async def _open(
        self, video: Source, served: ServedModel, options: WindowingOptions, name: str | None
    ) -> AsyncIterator[ClipPipeline]:
        """Wait until there is room for a video, then yield its pipeline; the video is open for the block."""
        async with self._admission.open(video, options, name=name, bytes_a_value=served.bytes_per_value) as session:
            yield ClipPipeline(self.transport, served, session, priority=self.priority, threads=self._threads)

    async def close(self) -> None:
        """Close the connection and the decoders."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._decoder_pool is not None:
            await asyncio.to_thread(self._decoder_pool.close)
        await self.transport.close()

    async def __aenter__(self) -> "AsyncRecognizer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


def check_sends_frames(send: Send) -> Send:
    """Return "frames": taught signs need frames, because `recognize_sign` knows only the model's own glosses.

    Raises:
        AslTritonError: `send` is "video".
    """
    if send == "video":
        raise AslTritonError("recognize_sign does not know taught signs: send frames (--send frames)")
    return "frames"
