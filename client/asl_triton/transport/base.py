"""Asking a server: the `Transport` that all others use, and what a server says about a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a served model: Triton's datatype ("UINT8", "FP32") and shape, -1 where any goes."""

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelDescription:
    """What a server says of one model; `labeled` names the outputs that have labels."""

    name: str
    version: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    parameters: Mapping[str, str]
    labeled: frozenset[str] = frozenset()
    max_batch_size: int = 0


@dataclass(frozen=True)
class Statistics:
    """A model's counters since the server started; times in seconds, summed over requests."""

    requests: int
    failures: int
    executions: int
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class SharedArray:
    """An input that the server reads from shared memory: where it lies in a region that was registered there."""

    region: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"


class Transport(Protocol):
    """What the rest of the client needs from a server. Every call has a deadline and raises `ServerError` when there
    is no answer, `ContractError` when the model or a tensor is missing, `VideoError` when a model that takes whole
    videos cannot read one."""

    address: str

    @property
    def connection_epoch(self) -> int:
        """Grows whenever a different server may answer than before, once `watch` was called."""

    async def server_version(self) -> str:
        """The server's version, once it is ready for inference."""

    async def model_names(self) -> list[str]:
        """The names of the models that are ready, sorted."""

    async def describe(self, model: str) -> ModelDescription:
        """What the server says about a model."""

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        """Ask a model for some of its outputs. Priority 0 is the model's default; `parameters` are the request's."""

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        """The `count` best of a labeled output, best first: (class, label)."""

    async def statistics(self, model: str) -> Statistics:
        """A model's counters."""

    async def watch(self) -> None:
        """Begin to count `connection_epoch`."""

    async def find_unreachable(self) -> tuple[str, ...]:
        """The listed servers that do not answer; none where only one was named."""

    async def close(self) -> None:
        """Let go of the connection."""


class TransportDecorator:
    """Does everything as `transport` does. For transports that change a part of it."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.address = transport.address

    @property
    def connection_epoch(self) -> int:
        return self.transport.connection_epoch

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
        return await self.transport.infer(model, inputs, outputs, priority, parameters)

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        return await self.transport.classify(model, inputs, output, count)

    async def statistics(self, model: str) -> Statistics:
        return await self.transport.statistics(model)

    async def watch(self) -> None:
        await self.transport.watch()

    async def find_unreachable(self) -> tuple[str, ...]:
        return await self.transport.find_unreachable()

    async def close(self) -> None:
        await self.transport.close()
