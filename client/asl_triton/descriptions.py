"""What a server says of a model: its tensors, its parameters, its counters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a served model: Triton's datatype ("UINT8", "FP32") and shape, -1 where any goes."""

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelDescription:
    """What a server says of one model; `labelled` names the outputs that have labels."""

    name: str
    version: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    parameters: Mapping[str, str]
    labelled: frozenset[str] = frozenset()
    max_batch_size: int = 0


@dataclass(frozen=True)
class Statistics:
    """A model's counters since the server started; times in seconds, summed over requests."""

    requests: int
    failures: int
    executions: int
    queue_s: float
    compute_s: float
