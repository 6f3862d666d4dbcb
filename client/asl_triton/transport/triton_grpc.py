"""Triton over gRPC. Its exceptions become `AslTritonError` here, by `error_mapping.py`, and nowhere else."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as grpc_client
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, serialize_byte_tensor

from asl_triton.errors import AslTritonError, ContractError
from asl_triton.transport.base import Array, ModelDescription, SharedArray, Statistics, TensorSpec
from asl_triton.transport.endpoints import DEFAULT_SERVER, Endpoints
from asl_triton.transport.error_mapping import NOT_READY, REQUEST_ERRORS, translate_error
from asl_triton.transport.retry import MAX_PAUSE_S, MIN_PAUSE_S, RetryPolicy
from asl_triton.transport.security import Security
from asl_triton.transport.tracing import request_span

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_IN_FLIGHT = 8  # requests; gRPC cancels some when there are hundreds
BULK_PRIORITY = 2  # behind the requests that somebody waits for
MAX_MESSAGE_BYTES = 2**31 - 1
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
RAW_INPUT_TAG = bytes([service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])  # 2: length-delimited
KEEPALIVE_MS = 60_000
ANSWERS_WITHIN_S = 3.0  # a server that is there


class GrpcTransport:
    """One Triton or several, over gRPC. Bound to the event loop that first uses it.

    `address` is what `Endpoints` takes: several servers are asked in turn. At most `in_flight` requests are under way
    at once; more wait. Requests are sent again as `RetryPolicy` says, none without `resend`: a benchmark wants to see
    what a server refuses.

    Raises:
        ServerError: the address is invalid. AslTritonError: the servers have several names and TLS needs one.
    """

    def __init__(
        self,
        address: str = DEFAULT_SERVER,
        *,
        security: Security | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        in_flight: int = DEFAULT_IN_FLIGHT,
        resend: bool = True,
    ) -> None:
        self.addresses = Endpoints(address)
        self.address = address
        self.security = security or Security()
        self.timeout_s = timeout_s
        self.in_flight = in_flight
        self.resend = resend
        self.retries = RetryPolicy(self.addresses.may_be_several)
        self._tls_name = self.security.tls_server_name
        if self.security.is_tls and self._tls_name is None and self.addresses.are_listed:
            if len(self.addresses.hosts) > 1:
                raise AslTritonError(
                    f"over TLS, the servers of {address} need the one name that is in all their certificates: give it "
                    "(--tls-server-name)"
                )
            self._tls_name = self.addresses.hosts[0].strip("[]")
        self._slots = asyncio.Semaphore(in_flight)
        self._client: Any = None
        self._model_infer: Any = None  # the client's call for inference
        self._watching: asyncio.Task[None] | None = None
        self._state_changes = 0

    async def server_version(self) -> str:
        return str(await self._ask(self._read_version))

    async def model_names(self) -> list[str]:
        client = await self.connect()
        index = await self._ask(client.get_model_repository_index)
        return sorted({model.name for model in index.models if model.state in ("READY", "")})

    async def describe(self, model: str) -> ModelDescription:
        client = await self.connect()
        metadata = await self._ask(client.get_model_metadata, model)
        config = (await self._ask(client.get_model_config, model)).config
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
        inputs: Mapping[str, Array | SharedArray],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
        *,
        num_classes: int = 0,
    ) -> dict[str, Array]:
        """Run a model and return some of its outputs: tensors, or the `num_classes` best classes, as Triton writes
        them."""
        request_id = uuid.uuid4().hex
        async with self._slots, self._map_errors(model, request_id):
            await self.connect()
            with request_span(model, self.address, request_id) as headers:
                message = build_message(
                    model, inputs, dict.fromkeys(outputs, num_classes), request_id, priority, parameters or {}
                )
                metadata = tuple({**self.security.headers, **headers}.items())
                send = partial(self._model_infer, message, timeout=self.timeout_s, metadata=metadata)
                result = grpc_client.InferResult(await self.retries.run(send, again=self.resend))
        return {name: self._read_output(result, model, name) for name in outputs}

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        answer = await self.infer(model, inputs, [output], num_classes=count)
        ranked = []
        for row in answer[output].reshape(-1):
            _score, index, *label = row.decode("utf-8", "replace").split(":", 2)
            ranked.append((int(index), label[0] if label else ""))
        return ranked

    async def statistics(self, model: str) -> Statistics:
        client = await self.connect()
        answer = await self._ask(client.get_inference_statistics, model)
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
    def resent(self) -> int:
        """How many requests were sent again."""
        return self.retries.resent

    @property
    def connection_epoch(self) -> int:
        return self.retries.resent + self._state_changes

    async def watch(self) -> None:
        if self._watching is None:
            client = await self.connect()
            self._watching = asyncio.create_task(self._count_state_changes(client._channel))  # it has no public name

    async def _count_state_changes(self, channel: Any) -> None:
        """gRPC reconnects by itself: a server that was replaced between two requests shows here alone."""
        with suppress(grpc.aio.UsageError):  # the channel is closed
            while True:
                await channel.wait_for_state_change(channel.get_state())
                self._state_changes += 1

    async def find_unreachable(self) -> tuple[str, ...]:
        listed = self.address.split(",") if self.addresses.are_listed else ()
        answers = await asyncio.gather(*(self._is_reachable(address) for address in listed))
        return tuple(address for address, does in zip(listed, answers, strict=True) if not does)

    async def _is_reachable(self, address: str) -> bool:
        security = replace(self.security, tls_server_name=self._tls_name)
        one = GrpcTransport(address, security=security, timeout_s=min(self.timeout_s, ANSWERS_WITHIN_S))
        try:
            await one.server_version()
        except AslTritonError:
            return False
        finally:
            await one.close()
        return True

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def connect(self) -> Any:
        """Tritonclient's client, the same one for all requests.

        Raises:
            ServerError: no host of a list can be resolved.
        """
        if self._client is None:
            target = await asyncio.to_thread(self.addresses.target)
            if self._client is None:  # nobody else was faster
                tls = self.security
                self._client = grpc_client.InferenceServerClient(
                    target,
                    ssl=tls.is_tls,
                    root_certificates=str(tls.tls_ca) if tls.tls_ca else None,
                    certificate_chain=str(tls.tls_cert) if tls.tls_cert else None,
                    private_key=str(tls.tls_key) if tls.tls_key else None,
                    channel_args=self._channel_args(),
                )
                # tritonclient's own `infer` copies a large input three times. Its channel is not public.
                self._model_infer = self._client._channel.unary_unary(
                    MODEL_INFER, response_deserializer=service_pb2.ModelInferResponse.FromString
                )
        return self._client

    def _channel_args(self) -> list[tuple[str, int | str]]:
        """Giving any argument drops all that tritonclient sets itself: restate the message sizes."""
        return [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            # gRPC's own first pause, a second, is longer than all of ours.
            ("grpc.initial_reconnect_backoff_ms", int(MIN_PAUSE_S * 1000)),
            # Despite its name, the time that connecting may take: a busy or distant server needs more than that.
            ("grpc.min_reconnect_backoff_ms", int(ANSWERS_WITHIN_S * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(MAX_PAUSE_S * 1000)),
            # New replicas are found as soon; gRPC would wait for half a minute.
            ("grpc.dns_min_time_between_resolutions_ms", int(MAX_PAUSE_S * 1000)),
            ("grpc.enable_http_proxy", int(not self.addresses.are_on_this_machine)),
            ("grpc.lb_policy_name", "round_robin"),
            *([("grpc.ssl_target_name_override", self._tls_name)] if self._tls_name else []),
        ]

    def _call_options(self, headers: Mapping[str, str]) -> dict[str, Any]:
        return {"client_timeout": self.timeout_s, "headers": {**self.security.headers, **headers} or None}

    async def _ask(self, call: Callable[..., Awaitable[Any]], model: str = "") -> Any:
        """What a server says about itself or a model. The first word of an only server counts."""
        ask = partial(call, *([model] if model else []), **self._call_options({}))
        async with self._map_errors(model):
            return await self.retries.run(ask, again=self.addresses.may_be_several)

    async def _read_version(self, **options: Any) -> str:
        client = await self.connect()
        if not await client.is_server_ready(**options):
            raise InferenceServerException(NOT_READY, "StatusCode.UNAVAILABLE")
        return str((await client.get_server_metadata(**options)).version)

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
        except REQUEST_ERRORS as exc:
            # In a thread: finding out why a connection was closed may take seconds.
            raise await asyncio.to_thread(
                translate_error, exc, self.address, model, self.timeout_s, request_id, self.security
            ) from exc


def build_message(
    model: str,
    inputs: Mapping[str, Array | SharedArray],
    outputs: Mapping[str, int],
    request_id: str,
    priority: int,
    parameters: Mapping[str, str],
) -> bytes:
    """Serialize a `ModelInferRequest`: its fields, then each array as `raw_input_contents`, copied only once.

    `outputs` maps each output to the number of classes to name, or to 0 for the tensor itself.
    """
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    if priority:
        request.parameters["priority"].uint64_param = priority
    for key, value in parameters.items():
        request.parameters[key].string_param = value
    for name, num_classes in outputs.items():
        output = request.outputs.add(name=name)
        if num_classes:
            output.parameters["classification"].int64_param = num_classes
    parts: list[Any] = []
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        if isinstance(array, SharedArray):
            tensor.parameters["shared_memory_region"].string_param = array.region
            tensor.parameters["shared_memory_byte_size"].int64_param = array.nbytes
            tensor.parameters["shared_memory_offset"].int64_param = array.offset
        else:
            content: Any = np.ascontiguousarray(array)
            if array.dtype == np.object_:
                content = serialize_byte_tensor(array).item()
            parts += [RAW_INPUT_TAG, encode_varint(memoryview(content).nbytes), content]
    return b"".join([request.SerializeToString(), *parts])


def encode_varint(number: int) -> bytes:
    """Encode a length as protobuf does: seven bits per byte, lowest first
    (https://protobuf.dev/programming-guides/encoding/#varints)."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
