"""The inputs of one request on their way to the server: in shared memory as far as that goes, in the message else."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tritonclient.utils import InferenceServerException

from asl_triton.transport.base import Array
from asl_triton.transport.error_mapping import is_rejected
from asl_triton.transport.shm import SharedMemory
from asl_triton.transport.shm_region import Region, size_for

T = TypeVar("T")

LEAST_BYTES = 64 * 1024  # of an array; a smaller one is as fast in the message
MOST_LOSSES = 3  # of one request: a server that was restarted loses its region once


@dataclass(frozen=True)
class Place:
    """Where an input lies: so many bytes into a region that the server has."""

    region: str
    offset: int


class Cargo:
    """The inputs of one request: those that are large in a region, if one can be had."""

    def __init__(self, memory: SharedMemory, inputs: Mapping[str, Array]) -> None:
        self._memory = memory
        self._large = {name: array for name, array in inputs.items() if is_worth_it(array)}
        self._region: Region | None = None
        self._places: dict[str, Place] = {}
        self._client: Any = None

    async def sent(self, client: Any, ask: Callable[[Mapping[str, Place]], Awaitable[T]]) -> T:
        """What `ask` answers, given where the large inputs lie; those that it is not given go in the message.

        Where the server has lost the region, as one that was restarted has, it gets a new one, and is asked again.
        """
        losses = 0
        while True:
            await self._load(client, fresh=losses > 0)
            try:
                return await self._asked(ask)
            except InferenceServerException as exc:
                if self._region is None or self._region.name not in str(exc.message()):
                    raise
                self._region.close()
                self._region = None
                losses += 1
                if losses == MOST_LOSSES:
                    self._memory.disable(f"it forgets them: {exc.message()}")

    def unload(self) -> None:
        """The request is over, however it ended."""
        if self._region is not None:
            self._memory.release(self._client, self._region)
            self._region = None

    async def _load(self, client: Any, fresh: bool) -> None:
        if not self._large or self._region is not None:
            return
        self._client, self._places = client, {}
        self._region = await self._memory.acquire(client, size_for(self._large), fresh)
        if self._region is not None:
            offsets = self._region.write(self._large)
            self._places = {name: Place(self._region.name, offset) for name, offset in offsets.items()}

    async def _asked(self, ask: Callable[[Mapping[str, Place]], Awaitable[T]]) -> T:
        """What it answers. Until then, and unless the server is done with it otherwise, the region is in doubt."""
        region = self._region
        if region is None:
            answer = await ask({})
            self._memory.answered_without()
            return answer
        before, region.in_doubt = region.in_doubt, True
        try:
            answer = await ask(self._places)
        except InferenceServerException as exc:
            if is_rejected(exc):
                region.in_doubt = before
            raise
        region.in_doubt = before
        return answer


@contextmanager
def carrying(memory: SharedMemory, inputs: Mapping[str, Array]) -> Iterator[Cargo]:
    """The inputs of one request, for the block."""
    cargo = Cargo(memory, inputs)
    try:
        yield cargo
    finally:
        cargo.unload()


def is_worth_it(array: Array) -> bool:
    """Whether an array goes by a region: one of numbers, and large."""
    return array.dtype.kind in "biuf" and array.nbytes >= LEAST_BYTES
