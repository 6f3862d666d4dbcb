"""The Triton behind the page: its status, and one recognizer per served model for all visitors."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asl_triton.decoding.factory import DEFAULT_DECODE_TIMEOUT_S, SAFEST
from asl_triton.errors import ContractError, ServerError
from asl_triton.models.served import ServedModel
from asl_triton.models.status import ServerStatus, read_status
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.event_loop import background_loop
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton.transport.base import Transport
from asl_triton.video.reader import Limits

T = TypeVar("T")

STATE_AGE_S = 2.0  # an older state is read again
STATE_TIMEOUT_S = 10.0
# A long clip needs 300 crops, and a recognizer holds 48 for each request that may be in flight. With 7 requests per
# clip, one visitor's long clip does not hold up the others.
REQUESTS_A_CLIP = 7


class ServerConnection:
    """The connection that all visitors share. If the server is away, `state` says so instead of raising.

    `connect` opens a connection, given the requests in flight and the timeout in seconds. Up to `at_once` clips are
    recognized together. `only` is the one model to offer; None offers all served models. Opening a video, and decoding
    each of its windows, may take `decode_timeout_s` where decoding runs in its own processes.
    """

    def __init__(
        self,
        connect: Callable[[int, float], Transport],
        *,
        timeout_s: float,
        at_once: int,
        limits: Limits,
        only: str | None = None,
        decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
    ) -> None:
        self.limits = limits
        self.only = only
        self._connect, self._timeout_s, self._in_flight = connect, timeout_s, at_once * REQUESTS_A_CLIP
        self._decode_timeout_s = decode_timeout_s
        self._transport = connect(self._in_flight, timeout_s)
        # A separate connection, so that status requests do not wait behind clips and a dead host times out sooner.
        self._watching = connect(1, min(timeout_s, STATE_TIMEOUT_S))
        self.address = self._watching.address
        self._state = ServerStatus(self.address, problem="the server has not been contacted yet")
        self._asked_s = -STATE_AGE_S
        self._asking: asyncio.Task[ServerStatus] | None = None
        self._recognizers: dict[str, tuple[ServedModel, AsyncRecognizer]] = {}
        self._lock = threading.Lock()

    async def state(self, *, now: bool = False) -> ServerStatus:
        """Return the server's status. It is read at most every two seconds for all visitors together, unless `now`."""
        if now or time.monotonic() - self._asked_s >= STATE_AGE_S:
            return await on_background(self._refresh())
        return self._state

    async def _refresh(self) -> ServerStatus:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._read())
        return await asyncio.shield(self._asking)

    async def _read(self) -> ServerStatus:
        state = await read_status(self._watching, self._state, self.only)
        if state != self._state:  # keep the same object while nothing changes: pages compare by identity
            self._state = state
        self._asked_s = time.monotonic()
        return self._state

    def recognizer(
        self, name: str | None, dictionary: SignDictionary | None = None, *, with_vocabulary: bool = False
    ) -> AsyncRecognizer:
        """Return the recognizer for a served model. Use it on the library's event loop: see `on_background`.

        With a `dictionary`, it answers with the dictionary's signs.

        Raises:
            ServerError: the server is away.
            ContractError: it does not serve this model.
        """
        served = self.served(name)
        with self._lock:
            known = self._recognizers.get(served.name)
            if known is None:
                made = self._make_recognizer(served.name, self._in_flight, self._transport)
                known = self._recognizers[served.name] = (served, made)
            elif known[0] != served:  # another checkpoint may have the same name
                known = self._recognizers[served.name] = (served, known[1].renew())
        if dictionary is None:
            return known[1]
        return known[1].with_dictionary(dictionary, with_vocabulary=with_vocabulary)

    def only_model(self) -> str | None:
        """Return the name of the only served model, None if there is none.

        Raises:
            ContractError: the server has several models.
        """
        names = [model.name for model in self._state.models]
        if len(names) > 1:
            raise ContractError(f"{self.address} serves {len(names)} models: choose one ({', '.join(names)})")
        return names[0] if names else None

    def factory(
        self,
        name: str | None,
        clips_at_once: int,
        dictionary: SignDictionary | None = None,
        *,
        with_vocabulary: bool = False,
    ) -> Callable[[], AsyncRecognizer]:
        """Return a function that makes a recognizer with its own connection, for `asl_triton.batch.workers` to close.

        Raises:
            ServerError, ContractError: as `recognizer` does.
        """
        model, in_flight = self.served(name).name, clips_at_once * REQUESTS_A_CLIP

        def make() -> AsyncRecognizer:
            transport = self._connect(in_flight, self._timeout_s)
            return self._make_recognizer(model, in_flight, transport, dictionary, with_vocabulary)

        return make

    def _make_recognizer(
        self,
        model: str,
        in_flight: int,
        transport: Transport,
        dictionary: SignDictionary | None = None,
        with_vocabulary: bool = False,
    ) -> AsyncRecognizer:
        return AsyncRecognizer(
            model=model,
            in_flight=in_flight,
            limits=self.limits,
            decoding=SAFEST,
            decode_timeout_s=self._decode_timeout_s,
            dictionary=dictionary,
            with_vocabulary=with_vocabulary,
            transport=transport,
        )

    def live_recognizer(
        self, name: str | None, dictionary: SignDictionary | None = None, *, with_vocabulary: bool = False
    ) -> Recognizer:
        """Return a sync recognizer for one live session. It shares the page's connection, so do not close it.

        Raises:
            ServerError, ContractError: as `recognizer` does.
        """
        return Recognizer(
            model=self.served(name).name,
            limits=self.limits,
            dictionary=dictionary,
            with_vocabulary=with_vocabulary,
            transport=self._transport,
        )

    def served(self, name: str | None) -> ServedModel:
        """Return a model as of the last status.

        Raises:
            ServerError, ContractError: as `recognizer` does.
        """
        state = self._state
        served = state.model(name)
        if served is not None:
            return served
        if state.version is None or not state.is_ready:
            raise ServerError(state.problem or f"no server answers at {state.address}")
        names = ", ".join(model.name for model in state.models)
        raise ContractError(f"{state.address} no longer serves model {name!r}: choose another ({names})")

    async def close(self) -> None:
        """Close the connections and the decoders."""
        for _, recognizer in self._recognizers.values():
            await on_background(recognizer.close())
        await on_background(self._transport.close())
        await on_background(self._watching.close())


async def on_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the library's background loop and await it; gRPC's asyncio does not support several loops."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, background_loop()))
