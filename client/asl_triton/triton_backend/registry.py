"""Which recognisers a server serves, asked from inside it, and with which folder's labels their answers are read.

A server may serve something else than what its folders hold by now: it loads a model when it starts or when it is told
to, and folders are written at any time. While both agree on how a model is asked and read, the folder is believed.
Where they may not, the server is asked for the clip whose answer every export leaves behind.
"""

from typing import Protocol

from asl_triton.errors import AslTritonError, ContractError, ServerError
from asl_triton.models.golden import render_golden
from asl_triton.models.repository import Catalogue, Shelved
from asl_triton.models.served import FRAMES, LOGITS
from asl_triton.recognizer.pipeline import Asked


class UnknownRecogniserError(ContractError):
    """No recogniser of that name is served, or none at all."""


class Inside(Asked, Protocol):
    """A server as one of its own models sees it."""

    async def is_ready(self, model: str) -> bool:
        """Whether another model is served."""


class Register:
    """The recognisers of `catalogue` that `server` serves.

    What the folders hold when this is made is what the server serves: both start together.
    """

    def __init__(self, catalogue: Catalogue, server: Inside) -> None:
        self._catalogue, self._server = catalogue, server
        self._bound: dict[str, Shelved] = {}  # as last known to be what is served
        for name in catalogue.names():
            try:
                self._bound[name] = self._on_disk(name)
            except AslTritonError:
                continue  # told to whoever asks for it

    async def choose(self, model: str | None) -> Shelved:
        """The recogniser of that name, or the only one that is served.

        Raises:
            UnknownRecogniserError: it is not served, or none is. AslTritonError: several are, and none was named.
            ServerError, ContractError, LabelsError: its folder does not tell what is served.
        """
        known = sorted({*self._catalogue.names(), *self._bound})
        ready = [name for name in known if await self._server.is_ready(name)]
        if model is not None and model not in ready:
            raise UnknownRecogniserError(
                f"this server has no recogniser {model!r}: its recognisers are {', '.join(ready) or 'none'}"
            )
        if not ready:
            raise UnknownRecogniserError(
                "this server has no recogniser: write one into its model repository with `asl-triton export`"
            )
        if model is None and len(ready) > 1:
            raise AslTritonError(
                f"this server has {len(ready)} recognisers: name one in the request's parameter `model` "
                f"({', '.join(ready)})"
            )
        return await self._bind(model or ready[0])

    async def confirm(self, chosen: Shelved) -> None:
        """Make sure that what was `chosen` is what has answered since.

        Raises:
            ServerError: another model may have been loaded in its place: the same request may be answered later.
        """
        name = chosen.served.name
        try:
            if self._on_disk(name).reads_as(chosen):
                return
        except AslTritonError:
            pass  # the folder is gone or half written
        if not await self._serves(chosen):
            raise ServerError(f"{name} was replaced while it was asked: send the request again")

    async def _bind(self, name: str) -> Shelved:
        """What is served as `name`, as its folder describes it, or as it did when it was loaded."""
        bound = self._bound.get(name)
        try:
            found = self._on_disk(name)
        except AslTritonError:
            if bound is None:
                raise
            found = bound
        believed = found.golden is None if bound is None else found.reads_as(bound)
        if believed or await self._serves(found):
            bound = found
        elif bound is None or not await self._serves(bound):
            raise ServerError(
                f"{name} does not answer as its folder says: the folder was changed. Restart the server, or load the "
                "model again"
            )
        self._bound[name] = bound
        return bound

    def _on_disk(self, name: str) -> Shelved:
        shelved = self._catalogue.read(name)
        if shelved is None:
            raise UnknownRecogniserError(f"there is no recogniser {name!r} on this server")
        return shelved

    async def _serves(self, shelved: Shelved) -> bool:
        """Whether what is served under its name answers the golden clip as this recogniser does."""
        if shelved.golden is None:
            return False
        name, tensor = shelved.served.name, shelved.served.tensor(render_golden(shelved.golden.num_frames))
        try:
            answers = await self._server.infer(name, {FRAMES: tensor}, [LOGITS])
        except ServerError:  # it takes another datatype, or is gone
            return False
        return shelved.gave(answers[LOGITS][0])
