"""What a server says of a model: its tensors, its parameters, its counters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


class Transport(Protocol):
    """What the rest of the client needs of a server. Every call has a deadline and raises `ServerError` when there is
    no answer, `ContractError` when the model or a tensor is not there, `VideoError` when a model that takes whole
    videos cannot read one."""

    address: str

    @property
    def connection_epoch(self) -> int:
        """Grows whenever another server may answer than before, once `watch` was called."""

    async def server_version(self) -> str:
        """The server's version, once it is ready for inference."""

    async def model_names(self) -> list[str]:
        """The names of the models that are ready, sorted."""

    async def describe(self, model: str) -> ModelDescription:
        """What the server says of a model."""

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
        """Of several servers that were listed, those that do not answer."""

    async def close(self) -> None:
        """Let go of the connection."""
