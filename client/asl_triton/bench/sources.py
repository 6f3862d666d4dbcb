"""What a load is made of: random frames for the model's own input, or clips by the whole way of the client."""

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from asl_triton.errors import AslTritonError
from asl_triton.models.served import FRAMES, LOGITS, ServedModel, read_model
from asl_triton.presets import INPUT_SIZE
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.transport.base import Array, ModelDescription, Statistics, Transport
from asl_triton.video.discovery import Clip

DEFAULT_FRAMES = 64
ARRAYS = 4  # different ones, taken in turns


@dataclass(frozen=True)
class Traffic:
    """Requests that were answered, and the bytes of their tensors; gRPC's own framing adds some hundreds to each."""

    requests: int = 0
    sent: int = 0
    received: int = 0


class Source(Protocol):
    """Asks a model about one clip after another. `what` says of which kind, for people."""

    model: ServedModel
    what: str

    @property
    def traffic(self) -> Traffic:
        """What has traveled so far."""

    async def send(self) -> object:
        """Ask about the next clip. Raises `AslTritonError`: it could not be read or answered."""

    async def statistics(self) -> Statistics:
        """The counters of the model. Raises `AslTritonError`: the server does not tell."""


class Metered:
    """A transport that counts the tensors which travel through another one."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.address = transport.address
        self.traffic = Traffic()

    async def server_version(self) -> str:
        return await self.transport.server_version()

    async def model_names(self) -> list[str]:
        return await self.transport.model_names()

    async def describe(self, model: str) -> ModelDescription:
        return await self.transport.describe(model)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        answers = await self.transport.infer(model, inputs, outputs, priority, parameters)
        sent, received = (sum(array.nbytes for array in tensors.values()) for tensors in (inputs, answers))
        before = self.traffic
        self.traffic = Traffic(before.requests + 1, before.sent + sent, before.received + received)
        return answers

    async def find_unreachable(self) -> tuple[str, ...]:
        return await self.transport.find_unreachable()

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        return await self.transport.classify(model, inputs, output, count)

    async def statistics(self, model: str) -> Statistics:
        return await self.transport.statistics(model)

    @property
    def connection_epoch(self) -> int:
        return self.transport.connection_epoch

    async def watch(self) -> None:
        await self.transport.watch()

    async def close(self) -> None:
        await self.transport.close()


class FramesSource:
    """Arrays as the model takes them, made beforehand: the cost of reading videos is not in the figures."""

    def __init__(self, transport: Metered, model: ServedModel, num_frames: int) -> None:
        self.model = model
        self.what = f"{num_frames} random frames a clip, as {model.datatype.lower()}"
        self._transport = transport
        draw = np.random.default_rng(0)
        shape = (num_frames, INPUT_SIZE, INPUT_SIZE, 3)
        arrays = [model.make_input(draw.integers(0, 256, shape, np.uint8)) for _ in range(ARRAYS)]
        self._inputs = itertools.cycle([{FRAMES: array} for array in arrays])

    @property
    def traffic(self) -> Traffic:
        return self._transport.traffic

    async def send(self) -> object:
        return await self._transport.infer(self.model.name, next(self._inputs), [LOGITS])

    async def statistics(self) -> Statistics:
        return await self._transport.statistics(self.model.name)


class ClipsSource:
    """Videos, each decoded, cropped and asked about whenever its turn comes."""

    def __init__(self, recognizer: AsyncRecognizer, transport: Metered, model: ServedModel, clips: list[Clip]) -> None:
        self.model = model
        self.what = f"{len(clips)} clip{'' if len(clips) == 1 else 's'}, decoded and cropped here"
        self._recognizer = recognizer
        self._transport = transport
        self._clips = itertools.cycle(clips)

    @property
    def traffic(self) -> Traffic:
        return self._transport.traffic

    async def send(self) -> object:
        clip = next(self._clips)
        return await self._recognizer.recognize(clip.path, top_k=1, name=clip.name)

    async def statistics(self) -> Statistics:
        return await self._transport.statistics(self.model.name)


@asynccontextmanager
async def frames_source(transport: Transport, model: str | None, num_frames: int) -> AsyncIterator[Source]:
    """Random frames for a model, or the only one that is served.

    Raises:
        ServerError, ContractError, LabelsError: the server is away, or serves nothing that fits.
        AslTritonError: so many frames are never sent to it in one request.
    """
    metered = Metered(transport)
    try:
        served = await read_model(metered, model)
        least, most = served.preset.min_frames, served.preset.max_frames
        if not least <= num_frames <= most:
            raise AslTritonError(
                f"{served.name} takes {least} to {most} frames at once, and not {num_frames}: give another --frames"
            )
        yield FramesSource(metered, served, num_frames)
    finally:
        await metered.close()


@asynccontextmanager
async def clips_source(
    transport: Transport, model: str | None, clips: list[Clip], in_flight: int
) -> AsyncIterator[Source]:
    """Clips for a model, or the only one that is served; at most `in_flight` are under way at once.

    Raises:
        ServerError, ContractError, LabelsError: the server is away, or serves nothing that fits.
    """
    metered = Metered(transport)
    async with AsyncRecognizer(model=model, in_flight=in_flight, transport=metered) as recognizer:
        yield ClipsSource(recognizer, metered, await recognizer.model(), clips)
