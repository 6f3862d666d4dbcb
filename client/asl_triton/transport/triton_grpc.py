"""Asking a server: a small Protocol, and Triton over gRPC.

gRPC's own exceptions are mapped to `AslTritonError` here, by `faults.py`, and nowhere else.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

# gRPC speaks to the terminal, and reads this when it is imported; what it has to say becomes our error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import tritonclient.grpc.aio as grpc_client
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from asl_triton.errors import AslTritonError, ContractError
from asl_triton.transport.base import Array, ModelDescription, Statistics, TensorSpec, Transport
from asl_triton.transport.channel_state import Connectivity
from asl_triton.transport.endpoints import DEFAULT_SERVER, Endpoints
from asl_triton.transport.error_mapping import NOT_READY, is_retryable, translate_error
from asl_triton.transport.fake import FakeTransport
from asl_triton.transport.retry import MAX_PAUSE_S, MIN_PAUSE_S, RetryThrottle, retry
from asl_triton.transport.security import Security
from asl_triton.transport.shm import SharedMemory, Sharing
from asl_triton.transport.shm_transfer import Place, carrying
from asl_triton.transport.tracing import request_span

__all__ = [
    "BULK_PRIORITY",
    "DEFAULT_IN_FLIGHT",
    "DEFAULT_SERVER",
    "DEFAULT_TIMEOUT_S",
    "Array",
    "FakeTransport",
    "GrpcTransport",
    "ModelDescription",
    "Security",
    "Sharing",
    "Statistics",
    "TensorSpec",
    "Transport",
    "is_retryable",
    "translate_error",
]

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_IN_FLIGHT = 8  # requests; gRPC cancels some where hundreds are
BULK_PRIORITY = 2  # behind the requests that somebody waits for
MAX_MESSAGE_BYTES = 2**31 - 1
KEEPALIVE_MS = 60_000
ANSWERS_WITHIN_S = 3.0  # a server that is there


class GrpcTransport:
    """One Triton or several, over gRPC. Bound to the event loop that first uses it.

    `address` is what `Endpoints` takes: several servers are asked in turn. At most `in_flight` requests are under way
    at once; more wait. A request that found the server away, stopping, or its queue full is sent again, after a random
    and growing pause, four times in all and within a budget (gRPC's own retries stop at 256 KiB); where there are
    several servers, one that is stopping is no reason to give up, and the request soon meets another. `resent` counts
    what was sent again. Without `resend` nothing is: who measures a server wants to see what it refuses.

    `shared_memory` says how large inputs reach a server on this machine: "shm", through memory that both share; "grpc",
    in the message, as they reach all others; "auto", through memory where the server allows it. The answers are the
    same, and so are errors and retries.

    Raises:
        ServerError: the address is none, or none for "shm". AslTritonError: the servers have several names and TLS
            needs one.
    """

    def __init__(
        self,
        address: str = DEFAULT_SERVER,
        *,
        security: Security | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        in_flight: int = DEFAULT_IN_FLIGHT,
        resend: bool = True,
        shared_memory: Sharing = "auto",
    ) -> None:
        self.addresses = Endpoints(address)
        self.address = address
        self.security = security or Security()
        self.timeout_s = timeout_s
        self.resend = resend
        self.resent = 0
        self._budget = RetryThrottle()
        self._tls_name = self.security.tls_server_name
        if self.security.is_tls and self._tls_name is None and self.addresses.are_listed:
            if len(self.addresses.hosts) > 1:
                raise AslTritonError(
                    f"over TLS, the servers of {address} need the one name that is in all their certificates: give it "
                    "(--tls-server-name)"
                )
            self._tls_name = self.addresses.hosts[0].strip("[]")
        self._memory = SharedMemory(shared_memory, self.addresses, self.security.headers)
        self._connectivity = Connectivity()
        self._slots = asyncio.Semaphore(in_flight)
        self._connection: Any = None

    async def server_version(self) -> str:
        async def ask(client: Any) -> str:
            if not await client.is_server_ready(**self._call_options()):
                raise InferenceServerException(NOT_READY, "StatusCode.UNAVAILABLE")
            return str((await client.get_server_metadata(**self._call_options())).version)

        return await self._ask(ask)

    async def model_names(self) -> list[str]:
        index = await self._ask(lambda client: client.get_model_repository_index(**self._call_options()))
        return sorted({model.name for model in index.models if model.state in ("READY", "")})

    async def describe(self, model: str) -> ModelDescription:
        metadata = await self._ask(lambda client: client.get_model_metadata(model, **self._call_options()), model)
        config = (await self._ask(lambda client: client.get_model_config(model, **self._call_options()), model)).config
        await self._ask(self._memory.ensure_available)  # before anything is asked that needs it
        return ModelDescription(
            name=metadata.name,
            version=max(metadata.versions, key=int, default=""),
            inputs={t.name: TensorSpec(t.datatype, tuple(t.shape)) for t in metadata.inputs},
            outputs={t.name: TensorSpec(t.datatype, tuple(t.shape)) for t in metadata.outputs},
            parameters={key: value.string_value for key, value in config.parameters.items()},
            labeled=frozenset(output.name for output in config.output if output.label_filename),
            max_batch_size=config.max_batch_size,
        )

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        asked = [grpc_client.InferRequestedOutput(name) for name in outputs]
        result = await self._infer(model, inputs, asked, priority, parameters)
        return {name: self._read_output(result, model, name) for name in outputs}

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        result = await self._infer(model, inputs, [grpc_client.InferRequestedOutput(output, class_count=count)], 0)
        ranked = []
        for row in self._read_output(result, model, output).reshape(-1):
            _score, index, *label = row.decode("utf-8", "replace").split(":", 2)
            ranked.append((int(index), label[0] if label else ""))
        return ranked

    async def statistics(self, model: str) -> Statistics:
        answer = await self._ask(lambda client: client.get_inference_statistics(model, **self._call_options()), model)
        stats = [m.inference_stats for m in answer.model_stats]
        compute = [(s.compute_input.ns + s.compute_infer.ns + s.compute_output.ns) / 1e9 for s in stats]
        return Statistics(
            requests=sum(s.success.count for s in stats),
            failures=sum(s.fail.count for s in stats),
            executions=sum(m.execution_count for m in answer.model_stats),
            queue_s=sum(s.queue.ns for s in stats) / 1e9,
            compute_s=sum(compute),
        )

    @property
    def connection_epoch(self) -> int:
        return self.resent + self._connectivity.changes

    async def find_unreachable(self) -> tuple[str, ...]:
        listed = self.address.split(",") if self.addresses.are_listed else ()
        answers = await asyncio.gather(*(self._answers(address) for address in listed))
        return tuple(address for address, does in zip(listed, answers, strict=True) if not does)

    async def _answers(self, address: str) -> bool:
        security = replace(self.security, tls_server_name=self._tls_name)
        one = GrpcTransport(address, security=security, timeout_s=min(self.timeout_s, ANSWERS_WITHIN_S), resend=False)
        try:
            await one.server_version()
        except AslTritonError:
            return False
        finally:
            await one.close()
        return True

    async def watch(self) -> None:
        self._connectivity.watch((await self._connect())._channel)  # tritonclient gives no other way to it

    async def close(self) -> None:
        await self._connectivity.close()
        if self._connection is not None:
            await self._memory.close(self._connection)
            await self._connection.close()
            self._connection = None

    def _call_options(self, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        return {"client_timeout": self.timeout_s, "headers": {**self.security.headers, **(headers or {})} or None}

    async def _connect(self) -> Any:
        if self._connection is None:
            target = await asyncio.to_thread(self.addresses.target)
            if self._connection is None:  # nobody else was faster
                tls = self.security
                self._connection = grpc_client.InferenceServerClient(
                    target,
                    ssl=tls.is_tls,
                    root_certificates=str(tls.tls_ca) if tls.tls_ca else None,
                    certificate_chain=str(tls.tls_cert) if tls.tls_cert else None,
                    private_key=str(tls.tls_key) if tls.tls_key else None,
                    channel_args=self._channel_args(),
                )
        return self._connection

    def _channel_args(self) -> list[tuple[str, int | str]]:
        """Giving any argument drops all that tritonclient sets itself: restate the message sizes."""
        return [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            # gRPC's own first pause, a second, is longer than all of ours.
            ("grpc.initial_reconnect_backoff_ms", int(MIN_PAUSE_S * 1000)),
            ("grpc.min_reconnect_backoff_ms", int(MIN_PAUSE_S * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(MAX_PAUSE_S * 1000)),
            # Replicas that are new are found as soon; gRPC would wait for half a minute.
            ("grpc.dns_min_time_between_resolutions_ms", int(MAX_PAUSE_S * 1000)),
            ("grpc.enable_http_proxy", int(not self.addresses.are_on_this_machine)),
            ("grpc.lb_policy_name", "round_robin"),
            *([("grpc.ssl_target_name_override", self._tls_name)] if self._tls_name else []),
        ]

    async def _ask(self, ask: Callable[[Any], Awaitable[T]], model: str = "") -> T:
        """What a server says of itself. Where it is the only one, its first word counts."""

        async def ask_one() -> T:
            return await ask(await self._connect())

        async with self._map_errors(model):
            if not self.addresses.may_be_several:
                return await ask_one()
            return await retry(ask_one, True, self._budget, self._count_resent)

    async def _infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: list[Any],
        priority: int,
        parameters: Mapping[str, str] | None = None,
    ) -> Any:
        request_id = uuid.uuid4().hex

        async def ask() -> Any:
            client = await self._connect()

            async def send(places: Mapping[str, Place]) -> Any:
                return await client.infer(
                    model,
                    build_inputs(inputs, places),
                    outputs=outputs,
                    request_id=request_id,
                    priority=priority,
                    parameters=dict(parameters) if parameters else None,
                    **self._call_options(headers),
                )

            return await cargo.sent(client, send)

        async with self._slots, self._map_errors(model, request_id):
            with request_span(model, self.address, request_id) as headers, carrying(self._memory, inputs) as cargo:
                if not self.resend:
                    return await ask()
                return await retry(ask, self.addresses.may_be_several, self._budget, self._count_resent)

    def _count_resent(self) -> None:
        self.resent += 1

    def _read_output(self, result: Any, model: str, name: str) -> Array:
        array: Array | None = result.as_numpy(name)
        if array is None or array.size == 0:
            raise ContractError(
                f"{model} on {self.address} answered with an empty {name} (request {result.get_response().id}). Where "
                "it runs on Triton's Python backend, that Python has NumPy 2, which this Triton cannot read: pip "
                "install 'numpy<2' there"
            )
        return array

    @asynccontextmanager
    async def _map_errors(self, model: str = "", request_id: str = "") -> AsyncIterator[None]:
        """Turn gRPC's and Triton's exceptions into a sentence."""
        try:
            yield
        except InferenceServerException as exc:
            # In a thread: why a connection was closed is looked for.
            raise await asyncio.to_thread(
                translate_error, exc, self.address, model, self.timeout_s, request_id, self.security
            ) from exc


def build_inputs(inputs: Mapping[str, Array], places: Mapping[str, Place]) -> list[Any]:
    """The inputs as tritonclient takes them: those that have a place in shared memory as that, others by content."""
    tensors = []
    for name, array in inputs.items():
        tensor = grpc_client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        if name in places:
            tensor.set_shared_memory(places[name].region, array.nbytes, places[name].offset)
        else:
            tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors
