"""Decides whether to send a clip as crops or as a file, and sends files to `recognize_sign`, which decodes them."""

import asyncio
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from asl_triton.decoding.admission import CROP_VALUES, Admission
from asl_triton.decoding.base import VideoInfo, WindowingOptions, format_source
from asl_triton.errors import ContractError, VideoError
from asl_triton.models.recognize_sign import (
    CLASS_ID,
    DETAILS,
    LOGIT,
    RECOGNIZE_SIGN,
    SIGNER_BOX,
    TOP_K,
    VIDEO,
    parse_details,
)
from asl_triton.models.served import ServedModel
from asl_triton.postprocessing.ranking import ClassIds, Ranking, rank
from asl_triton.results import Logits, Recognition, SignerBox
from asl_triton.transport.base import Array, ModelDescription, Transport
from asl_triton.video.reader import Limits, Source, open_file

Send = Literal["frames", "video", "auto"]
T = TypeVar("T")


@dataclass(frozen=True)
class UploadLimits:
    """What a server's `recognize_sign` accepts. Limits that it does not state are the client's defaults."""

    max_bytes: int
    max_frames: int
    max_pixels: int  # of one frame
    takes_box: bool = False  # whether it has the input SIGNER_BOX

    @classmethod
    def from_description(cls, model: ModelDescription) -> "UploadLimits":
        """Read the limits from the model's config."""
        largest = Limits()

        def limit(name: str, otherwise: int) -> int:
            value = model.parameters.get(f"asl_triton.{name}", "")
            return min(int(value), otherwise) if value.isdecimal() else otherwise

        return cls(
            limit("max_bytes", largest.max_bytes),
            limit("max_frames", largest.max_frames),
            limit("max_pixels", largest.max_pixels),
            takes_box=SIGNER_BOX in model.inputs,
        )

    def should_upload(self, video: VideoInfo, served: ServedModel) -> bool:
        """Return whether the server accepts a clip's file, and the file is smaller than the clip's crops."""
        return (
            video.num_bytes <= self.max_bytes
            and 0 < video.declared_frames <= self.max_frames
            and video.width * video.height <= self.max_pixels
            and video.num_bytes < video.crops_held * CROP_VALUES * served.bytes_per_value
        )


class VideoUploader:
    """Decides which clips to send as files, and sends those to `recognize_sign`.

    `send` is "frames" for none and "video" for all. "auto" sends the file if the server has `recognize_sign`, the clip
    is within its limits, and the file is smaller than the crops. A container that does not state its number of frames
    counts as over the limits.
    """

    def __init__(
        self,
        send: Send,
        transport: Transport,
        admission: Admission,
        limits: Limits,
        *,
        priority: int,
    ) -> None:
        self.send = send
        self._transport, self._admission, self._limits = transport, admission, limits
        self._priority = priority
        self._service: UploadLimits | None = None
        self._is_known = False

    async def buffer(self, video: Source) -> Source:
        """Return a clip that can be read twice: a file object's contents, unless frames are sent anyway."""
        if self.send == "frames" or isinstance(video, str | os.PathLike | bytes | bytearray | memoryview):
            return video
        return await self._in_thread(lambda: video.read(self._limits.max_bytes + 1))

    async def should_upload(
        self, video: Source, served: ServedModel, options: WindowingOptions, name: str | None
    ) -> bool:
        """Return whether to send a clip, as returned by `buffer`, as a file.

        Raises:
            VideoError: the clip has to be opened to find out, and is unreadable. ContractError: `send` is "video", but
                the server has no `recognize_sign`, or an old one without the signer's box, or there is an excerpt.
        """
        if self.send == "frames":
            return False
        if options.excerpt is not None:
            if self.send == "auto":
                return False
            raise ContractError(f"{RECOGNIZE_SIGN} takes whole videos, not a part of one: send frames (--send frames)")
        service = await self.service()
        has_box = select_box(options) is not None
        if self.send == "auto":
            if service is None or (has_box and not service.takes_box):
                return False
            measures = await self._admission.measure(video, options, name)
            return service.should_upload(measures, served)
        if service is None:
            raise ContractError(
                f"{self._transport.address} does not serve {RECOGNIZE_SIGN}, which takes whole videos: send frames "
                "(--send frames), or serve it (`asl-triton serve` does; other servers need its folder)"
            )
        if has_box and not service.takes_box:
            raise ContractError(
                f"{RECOGNIZE_SIGN} on {self._transport.address} does not take the signer's box: send frames (--send "
                "frames), or update its folder"
            )
        return True

    async def service(self) -> UploadLimits | None:
        """Return what the server's `recognize_sign` accepts, or None if it has none. The server is asked once."""
        if not self._is_known:
            try:
                model = await self._transport.describe(RECOGNIZE_SIGN)
                fits = VIDEO in model.inputs and {CLASS_ID, LOGIT, DETAILS} <= set(model.outputs)
                self._service = UploadLimits.from_description(model) if fits else None
            except ContractError:
                self._service = None
            self._is_known = True
        return self._service

    async def recognize(
        self,
        video: Source,
        served: ServedModel,
        options: WindowingOptions,
        ranking: Ranking,
        class_ids: ClassIds,
        name: str | None,
    ) -> Recognition:
        """Recognize the sign in a clip, as returned by `buffer`, by sending its file.

        The result is the same as with frames. The server returns all logits, 8 bytes per gloss, to be ranked here.

        Raises:
            VideoError: the clip is unreadable, here or on the server, or exceeds a limit.
            ServerError, ContractError: the server did not answer, or not as expected.
        """
        service = await self.service()
        assert service is not None
        name = format_source(video, name)
        most = min(service.max_bytes, self._limits.max_bytes)
        size = await self._in_thread(lambda: get_size(video, name))
        if size > most:
            raise VideoError(
                f"{name} is larger than {most:,} bytes, the limit for sending a file: compress it, or send its frames "
                "(--send frames)"
            )
        async with self._admission.hold(size):
            data = await self._in_thread(lambda: read_bytes(video, name))
            began_s = time.perf_counter()
            answers = await self._ask(data, served, select_box(options) if service.takes_box else None, name)
            seconds = time.perf_counter() - began_s
        predictions = rank(self._logits(answers, served), served.labels, served.preset, class_ids, ranking.top_k)
        details = parse_details(answers[DETAILS][0])
        details |= {"model": served.name, "wait_s": max(seconds - details["decode_s"], 0.0)}
        # Earlier versions of recognize_sign do not send the model's warnings.
        details["warnings"] = tuple(dict.fromkeys((*served.card.warnings, *details["warnings"])))
        unsure = ranking.with_threshold(served.card.min_confidence).is_unsure(predictions)
        return Recognition(video=name, predictions=predictions, unsure=unsure, **details)

    async def _ask(self, data: bytes, served: ServedModel, signer: SignerBox | None, name: str) -> dict[str, Array]:
        inputs = {VIDEO: np.array([data], np.object_), TOP_K: np.array([len(served.labels)], np.int32)}
        if signer is not None:
            inputs[SIGNER_BOX] = np.array([signer.x0, signer.y0, signer.x1, signer.y1], np.float32)
        try:
            return await self._transport.infer(
                RECOGNIZE_SIGN, inputs, [CLASS_ID, LOGIT, DETAILS], self._priority, {"model": served.name}
            )
        except VideoError as exc:
            raise VideoError(str(exc).replace(VIDEO, name, 1)) from exc

    def _logits(self, answers: dict[str, Array], served: ServedModel) -> Logits:
        """Return the logits (C,) in class order from an answer that lists them best first."""
        address = self._transport.address
        best_first = served.check_output(answers[LOGIT], (), address)
        if not np.array_equal(np.sort(answers[CLASS_ID]), np.arange(len(best_first))):
            raise ContractError(f"{RECOGNIZE_SIGN} on {address} did not answer with each class once: update it")
        logits = np.empty_like(best_first)
        logits[answers[CLASS_ID]] = best_first
        return logits

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._admission.threads, call)


def select_box(options: WindowingOptions) -> SignerBox | None:
    """The box that is sent with a file: the whole frame where nobody is to look for the signer.

    A data set's box is only sent for presets that use it.
    """
    box = options.signer
    if box is None and not options.finds_signer:
        return SignerBox(0, 0, 1, 1)
    return None if box is None or (box.source == "dataset" and options.preset.framing != "signer") else box


def get_size(video: Source, name: str) -> int:
    """Return the size of a clip's file in bytes."""
    if isinstance(video, str | os.PathLike):
        with open_file(Path(video), name) as stream:
            return stream.seek(0, io.SEEK_END)
    assert isinstance(video, bytes | bytearray | memoryview)
    return memoryview(video).nbytes


def read_bytes(video: Source, name: str) -> bytes:
    """Return the bytes of a clip's file."""
    if isinstance(video, str | os.PathLike):
        try:
            with open_file(Path(video), name) as stream:
                return stream.read()
        except OSError as exc:
            raise VideoError(f"cannot read {name}: {exc.strerror}") from exc
    assert isinstance(video, bytes | bytearray | memoryview)
    return bytes(video)
