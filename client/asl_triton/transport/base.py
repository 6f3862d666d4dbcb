"""The `Transport` interface to a server, and the data types for what a server says about a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a served model: Triton's datatype ("UINT8", "FP32") and shape, with -1 for any length."""

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelDescription:
    """What a server says about one model. `labeled` has the names of the outputs with labels."""

    name: str
    version: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    parameters: Mapping[str, str]
    labeled: frozenset[str] = frozenset()
    max_batch_size: int = 0


@dataclass(frozen=True)
class Statistics:
    """A model's counters since the server started. Times are in seconds, summed over all requests."""

    requests: int
    failures: int
    executions: int
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class SharedArray:
    """An input that the server reads from shared memory, and its place in a region registered with the server."""

    region: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"


class Transport(Protocol):
    """What the rest of the client needs from a server. Every call has a deadline. It raises `ServerError` if there is
    no answer, `ContractError` if the model or a tensor is missing, and `VideoError` if a model that takes whole videos
    cannot read one."""

    address: str

    @property
    def connection_epoch(self) -> int:
        """A counter that grows whenever another server may be answering than before. It starts with `watch`."""

    async def server_version(self) -> str:
        """Return the server's version. Raises `ServerError` if the server is not ready for inference."""

    async def model_names(self) -> list[str]:
        """Return the names of the models that are ready, sorted."""

    async def describe(self, model: str) -> ModelDescription:
        """Return what the server says about a model."""

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        """Run a model and return some of its outputs. Priority 0 is its default; `parameters` go into the request."""

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        """Return the `count` best classes of a labeled output, best first: (class, label)."""

    async def statistics(self, model: str) -> Statistics:
        """Return a model's counters."""

    async def watch(self) -> None:
        """Start counting `connection_epoch`."""

    async def find_unreachable(self) -> tuple[str, ...]:
        """Return the listed servers that do not answer, or none if only one was named."""

    async def close(self) -> None:
        """Close the connection."""


class TransportDecorator:
    """Forwards every call to `transport`. The base class of transports that change some of the calls."""

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
