"""A transport without a server, for tests."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from asl_triton.errors import ContractError
from asl_triton.transport.base import Array, ModelDescription, Statistics


@dataclass
class FakeTransport:
    """Serves `models` by name without a server.

    `answer(model, inputs)` returns all outputs. Exceptions that it raises reach the caller. `calls` records the model
    and the input shapes of each request.
    """

    models: dict[str, ModelDescription]
    labels: tuple[str, ...]
    answer: Callable[[str, Mapping[str, Array]], Mapping[str, Array]]
    address: str = "fake:8001"
    calls: list[tuple[str, dict[str, tuple[int, ...]]]] = field(default_factory=list)
    connection_epoch: int = 0

    async def server_version(self) -> str:
        return "fake"

    async def model_names(self) -> list[str]:
        return sorted(self.models)

    async def describe(self, model: str) -> ModelDescription:
        if model not in self.models:
            raise ContractError(f"there is no model {model} on {self.address}")
        return self.models[model]

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.calls.append((model, {name: array.shape for name, array in inputs.items()}))
        await asyncio.sleep(0)
        answers = self.answer(model, inputs)
        return {name: answers[name] for name in outputs}

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        logits = self.answer(model, inputs)[output][0]
        return [(int(index), self.labels[index]) for index in np.argsort(-logits)[:count]]

    async def statistics(self, model: str) -> Statistics:
        return Statistics(len(self.calls), 0, len(self.calls), 0.0, 0.0)

    async def find_unreachable(self) -> tuple[str, ...]:
        return ()

    async def watch(self) -> None:
        """Do nothing. Tests set `connection_epoch` themselves."""

    async def close(self) -> None:
        """Do nothing."""
