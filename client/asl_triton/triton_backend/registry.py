"""Which models a server serves, asked from inside it, and with which folder's labels their answers are read.

A server may serve something else than what its folders hold by now: it loads a model when it starts or when it is told
to, and folders are written at any time. While both agree on how a model is asked and read, the folder is believed.
Where they may not, the server is asked for the clip whose answer every export leaves behind.
"""

from typing import Protocol

from asl_triton.errors import AslTritonError, ContractError, ServerError
from asl_triton.models.golden import render_golden
from asl_triton.models.repository import ModelOnDisk, ModelRepository
from asl_triton.models.served import FRAMES, LOGITS
from asl_triton.recognizer.pipeline import InferenceClient


class UnknownModelError(ContractError):
    """No model of that name is served, or none at all."""


class InProcessServer(InferenceClient, Protocol):
    """A server as one of its own models sees it."""

    async def is_ready(self, model: str) -> bool:
        """Whether another model is served."""


class ModelRegistry:
    """The models of `catalog` that `server` serves.

    What the folders hold when this is made is what the server serves: both start together.
    """

    def __init__(self, catalog: ModelRepository, server: InProcessServer) -> None:
        self._catalog, self._server = catalog, server
        self._bound: dict[str, ModelOnDisk] = {}  # as last known to be what is served
        for name in catalog.names():
            try:
                self._bound[name] = self._on_disk(name)
            except AslTritonError:
                continue  # told to whoever asks for it

    async def choose(self, model: str | None) -> ModelOnDisk:
        """The model of that name, or the only one that is served.

        Raises:
            UnknownModelError: it is not served, or none is. AslTritonError: several are, and none was named.
            ServerError, ContractError, LabelsError: its folder does not tell what is served.
        """
        known = sorted({*self._catalog.names(), *self._bound})
        ready = [name for name in known if await self._server.is_ready(name)]
        if model is not None and model not in ready:
            raise UnknownModelError(f"this server has no model {model!r}: its models are {', '.join(ready) or 'none'}")
        if not ready:
            raise UnknownModelError(
                "this server has no model: write one into its model repository with `asl-triton export`"
            )
        if model is None and len(ready) > 1:
            raise AslTritonError(
                f"this server has {len(ready)} models: name one in the request's parameter `model` ({', '.join(ready)})"
            )
        return await self._bind(model or ready[0])

    async def confirm(self, chosen: ModelOnDisk) -> None:
        """Make sure that what was `chosen` is what has answered since.

        Raises:
            ServerError: another model may have been loaded in its place: the same request may be answered later.
        """
        name = chosen.served.name
        try:
            if self._on_disk(name).is_compatible_with(chosen):
                return
        except AslTritonError:
            pass  # the folder is gone or half written
        if not await self._serves(chosen):
            raise ServerError(f"{name} was replaced while it was asked: send the request again")

    async def _bind(self, name: str) -> ModelOnDisk:
        """What is served as `name`, as its folder describes it, or as it did when it was loaded."""
        bound = self._bound.get(name)
        try:
            found = self._on_disk(name)
        except AslTritonError:
            if bound is None:
                raise
            found = bound
        believed = found.golden is None if bound is None else found.is_compatible_with(bound)
        if believed or await self._serves(found):
            bound = found
        elif bound is None or not await self._serves(bound):
            raise ServerError(
                f"{name} does not answer as its folder says: the folder was changed. Restart the server, or load the "
                "model again"
            )
        self._bound[name] = bound
        return bound

    def _on_disk(self, name: str) -> ModelOnDisk:
        shelved = self._catalog.read(name)
        if shelved is None:
            raise UnknownModelError(f"there is no model {name!r} on this server")
        return shelved

    async def _serves(self, shelved: ModelOnDisk) -> bool:
        """Whether what is served under its name answers the golden clip as this model does."""
        if shelved.golden is None:
            return False
        name, tensor = shelved.served.name, shelved.served.make_input(render_golden(shelved.golden.num_frames))
        try:
            answers = await self._server.infer(name, {FRAMES: tensor}, [LOGITS])
        except ServerError:  # it takes another datatype, or is gone
            return False
        return shelved.matches_golden(answers[LOGITS][0])
