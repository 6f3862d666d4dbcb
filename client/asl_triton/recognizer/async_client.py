"""The whole way, video -> clips -> transport -> predictions, as one short method; asyncio and sync faces over it."""

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

    `model` may be left out where only one model is served. Clips may be asked about at the same time; at most
    `in_flight` of them are under way, fewer where they are long: memory is bounded by 48 frames for each. Close it, or
    use it in an `async with` block.

    `send` is how `recognize` brings a clip to the server, with the same answer: its "frames", cropped here; the whole
    "video" file, where the server has `recognize_sign`; or "auto", see `VideoUploader`. Steps and curves need frames.

    `signer` is where the signer is in every video, unless a call says where in its own. Without it, `find_signer` looks
    for a face in the first frames of each clip, and of each shot of a video that becomes a timeline. Presets that frame
    by the signer get the upper body, others a part of the frame where the signer is small or the video is higher than
    wide. The answer says which part.

    With a `dictionary`, the answers are the signs that were taught; and the model's own too, if they are to compete
    (`with_vocabulary`). Frames are sent then.

    `decoders` videos are decoded at once, as many as there are processors if it is not given. On Linux each is decoded
    in one of the "processes" that a damaged video may crash, or hang for `decode_timeout_s`, at the cost of that video
    alone; elsewhere, or if you ask for them, in "threads" of this process. The answers are the same.
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
        self._model_transport = self.transport  # answers for the model itself
        if dictionary is not None:
            send = check_sends_frames(send)
            self.transport = DictionaryTransport(self.transport, dictionary, with_vocabulary=with_vocabulary)
        self.limits = limits or Limits()
        self.film_limits = limits or LONG_VIDEO_LIMITS  # of a file that becomes a timeline
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
        self._own_model: ServedModel | None = None  # the one that a dictionary's signs were taught with
        self._reading = asyncio.Lock()

    async def model(self, *, again: bool = False) -> ServedModel:
        """The model's contract, read from the server once, and once more if `again`.

        Raises:
            ServerError, ContractError, LabelsError: the server is away, or serves nothing that fits.
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
        """A recognizer of taught signs, over the same connection and decoders: close this one, not that.

        Raises:
            AslTritonError: this one sends video files.
        """
        taught = self.renew()
        taught.transport = DictionaryTransport(self._model_transport, dictionary, with_vocabulary=with_vocabulary)
        send = check_sends_frames(self._uploader.send)
        taught._uploader = VideoUploader(send, taught.transport, self._admission, self.limits, priority=self.priority)
        return taught

    async def embed(self, video: Source, *, name: str | None = None, signer: SignerBox | None = None) -> Embedding:
        """What the model sees in a clip of one sign, as an example for a `SignDictionary`.

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

        `vocabulary` ranks only its glosses; below `min_confidence`, the model's own threshold if not given, the answer
        is `unsure`; `name` is what the answer calls the video, its path if not given; `signer` is where the signer is
        in it; `excerpt` is the part of the video that is the clip.

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
        """As `recognize`, with the confidences of the `curves` best glosses over time, of the same requests.

        For clips: all steps are held until the end. `find_signer` is the recognizer's own if it is not given.
        `on_start` is called with the pipeline when decoding starts; poll it to show progress.
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
        """What the network is shown of a clip at these times, by the same options as `recognize_with_curves`.

        A time before the first crop gets the first, a time after the last one the last. The clip is decoded once more,
        up to the last of the times; no server is asked, unless the model is not known yet.

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
        """The steps of a video of any length as they become known, in bounded memory: it is decoded while they come.

        Windows of `window` frames, one every `stride`, are asked about; the preset says both if they are not given.
        Close the iterator, with `contextlib.aclosing`, where you leave it early.

        Raises:
            VideoError: the video cannot be read. ServerError, ContractError, LabelsError: as `model` does.
            AslTritonError: such windows cannot be.
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
        """Which signs are signed in a video of any length, and when: its `steps`, by the rules of `Segmentation`.

        `vocabulary` looks for its glosses only. `on_segment` gets each segment as soon as it is known, `on_progress`
        the share of the video that was read, 0 to 1, where its container tells its length.

        Raises:
            VideoError, ServerError, ContractError, LabelsError, AslTritonError: as `steps` and `recognize` do.
        """
        served = await self.model()
        preset = with_window(served.preset, window, stride)
        segmenter = Segmenter(served.labels, rules, Ranking(vocabulary=vocabulary).class_ids(served.labels).tolist())
        async with self._open(video, served, self._film(video, preset, signer), name) as pipeline:
            return await run_timeline(pipeline, preset, segmenter, on_segment, on_progress)

    async def _read_own_model(self) -> ServedModel:
        """The contract of the model itself, with its own glosses, read from the server once."""
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
        """A video that may be longer than a clip, if it is a file: what is in memory already has a clip's limits."""
        is_file = isinstance(video, str | os.PathLike)
        limits = self.film_limits if is_file else self.limits
        return WindowingOptions(
            preset, limits, is_film=True, signer=signer or self.signer, finds_signer=self.find_signer
        )

    @asynccontextmanager
    async def _open(
        self, video: Source, served: ServedModel, options: WindowingOptions, name: str | None
    ) -> AsyncIterator[ClipPipeline]:
        """A video that is being decoded, for the length of the block, when its turn has come."""
        async with self._admission.open(video, options, name=name, bytes_a_value=served.bytes_per_value) as session:
            yield ClipPipeline(self.transport, served, session, priority=self.priority, threads=self._threads)

    async def close(self) -> None:
        """Let go of the connection and the decoders."""
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
    """How clips of taught signs go to the server: as frames, since `recognize_sign` knows the model's own glosses.

    Raises:
        AslTritonError: files are to be sent.
    """
    if send == "video":
        raise AslTritonError("recognize_sign does not know taught signs: send frames (--send frames)")
    return "frames"
