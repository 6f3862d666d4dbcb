"""Asking a server: a small Protocol, Triton over gRPC, and a fake for tests.

gRPC's own exceptions are mapped to `AslTritonError` here and nowhere else.
"""

import asyncio
import os
import re
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tenacity

from asl_triton.errors import AslTritonError, ContractError, ServerError

# gRPC speaks to the terminal, and reads this when it is imported; what it has to say becomes our error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import tritonclient.grpc.aio as grpc_client
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Array = npt.NDArray[Any]

DEFAULT_SERVER = "localhost:8001"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_IN_FLIGHT = 8  # requests; gRPC cancels some where hundreds are
BULK_PRIORITY = 2  # behind the requests that somebody waits for
RETRIES = 4
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.1, 2.0
ADDRESS = re.compile(r"(?!https?:)\S+:\d+|unix:\S+")
THIS_MACHINE = re.compile(r"(localhost|127\.[\d.]+|\[::1\]):\d+")
MAX_MESSAGE_BYTES = 2**31 - 1
KEEPALIVE_MS = 60_000
TOO_LARGE = "larger than max"  # in what gRPC says of a message beyond a limit


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


@dataclass(frozen=True)
class Security:
    """How a connection is protected. `tls_ca` or `tls_cert` turn TLS on; `tls_cert` with `tls_key` is mutual TLS."""

    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    api_key: str | None = None

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise AslTritonError("mutual TLS needs both the certificate (--tls-cert) and its key (--tls-key)")
        for path in (self.tls_ca, self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise AslTritonError(f"there is no file {path} to speak TLS with")
        if self.api_key is not None and not re.fullmatch("[!-~]+", self.api_key):
            raise AslTritonError("the API key (--api-key) must be letters, digits and signs of ASCII, without spaces")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # gRPC would only say that no server answers
        try:
            if self.tls_ca is not None:
                context.load_verify_locations(self.tls_ca)
        except OSError as exc:
            raise AslTritonError(f"{self.tls_ca} (--tls-ca) holds no certificate in PEM: {exc}") from exc
        try:
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")  # gRPC takes no encrypted key
        except OSError as exc:
            raise AslTritonError(
                f"{self.tls_cert} (--tls-cert) and {self.tls_key} (--tls-key) are no certificate in PEM and its "
                f"unencrypted key: {exc}"
            ) from exc

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    @property
    def headers(self) -> dict[str, str]:
        """What Triton's `--grpc-restricted-protocol=...:api-key=VALUE` asks to see on each call."""
        return {} if self.api_key is None else {"triton-grpc-protocol-api-key": self.api_key}


class Transport(Protocol):
    """What the rest of the client needs of a server. Every call has a deadline and raises `ServerError` when there is
    no answer, `ContractError` when the model or a tensor is not there."""

    address: str

    async def server_version(self) -> str:
        """The server's version, once it is ready for inference."""

    async def model_names(self) -> list[str]:
        """The names of the models that are ready, sorted."""

    async def describe(self, model: str) -> ModelDescription:
        """What the server says of a model."""

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        """Ask a model for some of its outputs. Priority 0 is the model's default."""

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        """The `count` best of a labelled output, best first: (class, label)."""

    async def statistics(self, model: str) -> Statistics:
        """A model's counters."""

    async def close(self) -> None:
        """Let go of the connection."""


class GrpcTransport:
    """Triton over gRPC. Bound to the event loop that first uses it.

    At most `in_flight` requests are under way at once; more wait. A request that found the server away or its queue
    full is sent again, after a random and growing pause, four times in all (gRPC's own retries stop at 256 KiB).
    """

    def __init__(
        self,
        address: str = DEFAULT_SERVER,
        *,
        security: Security | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        in_flight: int = DEFAULT_IN_FLIGHT,
    ) -> None:
        if not ADDRESS.fullmatch(address):
            raise ServerError(
                f"{address!r} is no server's address: name host:port, such as {DEFAULT_SERVER} (--server)"
            )
        self.address = address
        self.security = security or Security()
        self.timeout_s = timeout_s
        self._slots = asyncio.Semaphore(in_flight)
        self._connection: Any = None

    @property
    def _client(self) -> Any:
        if self._connection is None:
            tls = self.security
            self._connection = grpc_client.InferenceServerClient(
                self.address,
                ssl=tls.is_tls,
                root_certificates=str(tls.tls_ca) if tls.tls_ca else None,
                certificate_chain=str(tls.tls_cert) if tls.tls_cert else None,
                private_key=str(tls.tls_key) if tls.tls_key else None,
                # Giving any argument drops all that the client sets itself: restate the message sizes.
                channel_args=[
                    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                    # gRPC's own first pause, a second, is longer than all of ours.
                    ("grpc.initial_reconnect_backoff_ms", int(MIN_BACKOFF_S * 1000)),
                    ("grpc.min_reconnect_backoff_ms", int(MIN_BACKOFF_S * 1000)),
                    ("grpc.max_reconnect_backoff_ms", int(MAX_BACKOFF_S * 1000)),
                    ("grpc.enable_http_proxy", int(not THIS_MACHINE.fullmatch(self.address))),
                    ("grpc.lb_policy_name", "round_robin"),
                ],
            )
        return self._connection

    async def server_version(self) -> str:
        async with self._mapped():
            ready = await self._client.is_server_ready(**self._call)
            metadata = await self._client.get_server_metadata(**self._call)
        if not ready:
            raise ServerError(f"the server at {self.address} is still starting, or a model failed to load: see its log")
        return str(metadata.version)

    async def model_names(self) -> list[str]:
        async with self._mapped():
            index = await self._client.get_model_repository_index(**self._call)
        return sorted({model.name for model in index.models if model.state in ("READY", "")})

    async def describe(self, model: str) -> ModelDescription:
        async with self._mapped(model):
            metadata = await self._client.get_model_metadata(model, **self._call)
            config = (await self._client.get_model_config(model, **self._call)).config
        return ModelDescription(
            name=metadata.name,
            version=max(metadata.versions, key=int, default=""),
            inputs={t.name: TensorSpec(t.datatype, tuple(t.shape)) for t in metadata.inputs},
            outputs={t.name: TensorSpec(t.datatype, tuple(t.shape)) for t in metadata.outputs},
            parameters={key: value.string_value for key, value in config.parameters.items()},
            labelled=frozenset(output.name for output in config.output if output.label_filename),
            max_batch_size=config.max_batch_size,
        )

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        asked = [grpc_client.InferRequestedOutput(name) for name in outputs]
        result = await self._infer(model, inputs, asked, priority)
        return {name: self._array(result, model, name) for name in outputs}

    async def classify(self, model: str, inputs: Mapping[str, Array], output: str, count: int) -> list[tuple[int, str]]:
        result = await self._infer(model, inputs, [grpc_client.InferRequestedOutput(output, class_count=count)], 0)
        ranked = []
        for row in self._array(result, model, output).reshape(-1):
            _score, index, *label = row.decode("utf-8", "replace").split(":", 2)
            ranked.append((int(index), label[0] if label else ""))
        return ranked

    async def statistics(self, model: str) -> Statistics:
        async with self._mapped(model):
            answer = await self._client.get_inference_statistics(model, **self._call)
        stats = [m.inference_stats for m in answer.model_stats]
        compute = [(s.compute_input.ns + s.compute_infer.ns + s.compute_output.ns) / 1e9 for s in stats]
        return Statistics(
            requests=sum(s.success.count for s in stats),
            failures=sum(s.fail.count for s in stats),
            executions=sum(m.execution_count for m in answer.model_stats),
            queue_s=sum(s.queue.ns for s in stats) / 1e9,
            compute_s=sum(compute),
        )

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    @property
    def _call(self) -> dict[str, Any]:
        return {"client_timeout": self.timeout_s, "headers": self.security.headers or None}

    async def _infer(self, model: str, inputs: Mapping[str, Array], outputs: list[Any], priority: int) -> Any:
        tensors = []
        for name, array in inputs.items():
            tensor = grpc_client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        request_id = uuid.uuid4().hex
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(is_worth_retrying),
            wait=tenacity.wait_random_exponential(multiplier=0.2, min=MIN_BACKOFF_S, max=MAX_BACKOFF_S),
            stop=tenacity.stop_after_attempt(RETRIES),
            reraise=True,
        )
        async with self._slots, self._mapped(model, request_id):
            async for attempt in retrying:
                with attempt:
                    return await self._client.infer(
                        model, tensors, outputs=outputs, request_id=request_id, priority=priority, **self._call
                    )

    def _array(self, result: Any, model: str, name: str) -> Array:
        array: Array | None = result.as_numpy(name)
        if array is None or array.size == 0:
            raise ContractError(
                f"{model} on {self.address} answered with an empty {name}. Where it runs on Triton's Python backend, "
                "that Python has NumPy 2, which this Triton cannot read: pip install 'numpy<2' there"
            )
        return array

    @asynccontextmanager
    async def _mapped(self, model: str = "", request_id: str = "") -> AsyncIterator[None]:
        """Turn gRPC's and Triton's exceptions into a sentence."""
        try:
            yield
        except InferenceServerException as exc:
            raise explained(exc, self.address, model, self.timeout_s, request_id) from exc


def is_worth_retrying(exc: BaseException) -> bool:
    """Whether the same request may be answered in a moment: the server was away, or its queue full."""
    return (
        isinstance(exc, InferenceServerException)
        and (exc.status() or "").removeprefix("StatusCode.") in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
        and not any(words in str(exc.message()) for words in ("restricted", TOO_LARGE))
    )


def explained(
    exc: InferenceServerException, address: str, model: str, timeout_s: float, request_id: str = ""
) -> AslTritonError:
    """The sentence for what the server, or the way to it, said."""
    status = (exc.status() or "").removeprefix("StatusCode.")
    said = " ".join(str(exc.message()).split())
    asked = f" (request {request_id})" if request_id else ""
    if "restricted" in said or status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerError(f"the server at {address} refused the call: give the right --api-key ({said})")
    if TOO_LARGE in said:
        return ServerError(
            f"the server at {address}, or a proxy before it, takes no requests as large as {model}'s{asked}: {said}. "
            "Raise its limit on the size of gRPC messages"
        )
    if (status == "UNAVAILABLE" and "queue size" in said) or status == "RESOURCE_EXHAUSTED":
        return ServerError(f"{model} on {address} is too busy{asked}: {said}. Try again later, or add servers")
    if status == "DEADLINE_EXCEEDED" or "Request timeout expired" in said:
        return ServerError(
            f"{address} gave no answer within {timeout_s:g} s{asked}: it is overloaded or stuck. "
            "Raise --timeout, or see its log"
        )
    if status in ("NOT_FOUND", "INVALID_ARGUMENT") or "unknown model" in said:
        return ContractError(f"{model or 'the model'} on {address} cannot answer this{asked}: {said}")
    if status == "UNIMPLEMENTED":
        return ServerError(f"what answers at {address} is no Triton: name another (--server host:port). [{said}]")
    if "handshak" in said or "Verification" in said:
        return ServerError(
            f"no TLS with {address}: give the authority that signed its certificate (--tls-ca), name it as the "
            f"certificate does, or leave TLS out where it has none. [{said}]"
        )
    if status == "UNAVAILABLE" and "Socket closed" in said:
        return ServerError(
            f"the server at {address} closed the connection{asked}: it stopped, or this is not Triton's gRPC port "
            f"(8001; 8000 is HTTP's), or it wants TLS (--tls, --tls-ca) or a certificate of ours (--tls-cert). [{said}]"
        )
    if status == "UNAVAILABLE":
        return ServerError(
            f"no server answers at {address}: start one (asl-triton serve), or name another's gRPC port "
            f"(--server host:8001; 8000 is HTTP's). [{said[:200]}]"
        )
    return ServerError(f"{model or 'the server'} on {address} failed{asked}: {said}")


@dataclass
class FakeTransport:
    """A server of one's own making, for tests: `models` by name, and what each answers to its input.

    `answer(model, inputs)` gives all outputs; an exception it raises is what the caller sees. `calls` records each
    request's model and the shapes it came with.
    """

    models: dict[str, ModelDescription]
    labels: tuple[str, ...]
    answer: Callable[[str, Mapping[str, Array]], Mapping[str, Array]]
    address: str = "fake:8001"
    calls: list[tuple[str, dict[str, tuple[int, ...]]]] = field(default_factory=list)

    async def server_version(self) -> str:
        return "fake"

    async def model_names(self) -> list[str]:
        return sorted(self.models)

    async def describe(self, model: str) -> ModelDescription:
        if model not in self.models:
            raise ContractError(f"there is no model {model} on {self.address}")
        return self.models[model]

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
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

    async def close(self) -> None:
        """Nothing to let go of."""
