"""The gRPC transport against real servers that refuse, are slow, are down, or are not Triton."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from asl_triton.errors import AslTritonError, BusyError, ContractError, ServerError
from asl_triton.presets import PRESETS
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.transport.base import SharedArray, TensorSpec
from asl_triton.transport.error_mapping import is_retryable, translate_error
from asl_triton.transport.triton_grpc import GrpcTransport, build_message, encode_varint
from tests.client import videos
from tests.client.asking import FRAMES, asked, infer_logits, read_version
from tests.client.grpc_server import GLOSSES, Triton, serving
from tests.live.faults.bad_network import BadNetwork

UNREACHABLE, BUSY, INVALID, RESTRICTED = (
    (grpc.StatusCode.UNAVAILABLE, "GOAWAY received"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "no more room"),
    (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input 'FRAMES__0'"),
    (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-api-key'"),
)


@pytest.fixture
def triton() -> Iterator[Triton]:
    with serving(Triton()) as served:
        yield served


def test_slow_connection_succeeds(triton: Triton) -> None:
    with BadNetwork(triton.address, delay_s=0.3) as network:
        assert read_version(network.address) == "2.80.0"


def test_server_describes_its_models(triton: Triton) -> None:
    async def ask(transport: GrpcTransport) -> tuple[Any, ...]:
        described = await transport.describe("signs")
        return (
            await transport.server_version(),
            await transport.model_names(),
            described,
            await transport.statistics("signs"),
        )

    server_version, names, described, statistics = asked(triton.address, ask)
    assert (server_version, names) == ("2.80.0", ["signs"])  # without the model that is not ready
    assert (described.name, described.version, described.max_batch_size) == ("signs", "10", 8)
    assert described.inputs == {"FRAMES__0": TensorSpec("UINT8", (-1, -1, 224, 224, 3))}
    assert described.outputs["LOGITS__0"] == TensorSpec("FP32", (-1, 4))
    assert described.parameters == {"asl_triton.preset": PRESETS["wlasl"].to_json()}
    assert described.labeled == {"LOGITS__0"}
    assert (statistics.requests, statistics.executions, statistics.failures) == (3, 2, 0)
    assert (statistics.queue_s, statistics.compute_s) == (0.5, 1.5)


def test_message_equals_that_of_tritonclient() -> None:
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "FRAMES": draw.integers(0, 256, (1, 3, 40, 50, 3), np.uint8)[:, :, ::2],  # not contiguous
        "FLOATS": draw.random((2, 3), np.float32),
        "VIDEO": np.array([b"\0video" * 50], np.object_),
    }
    given = [grpc_client.InferInput(name, list(a.shape), np_to_triton_dtype(a.dtype)) for name, a in arrays.items()]
    for tensor, array in zip(given, arrays.values(), strict=True):
        tensor.set_data_from_numpy(array)
    shared = SharedArray("region", 64, 9, (1, 9), np.dtype(np.uint8))
    given.append(grpc_client.InferInput("SHARED", [1, 9], "UINT8").set_shared_memory("region", 9, 64))
    expected = grpc_client._utils._get_inference_request(
        model_name="signs", model_version="", inputs=given, request_id="1", priority=2, timeout=None,
        outputs=[grpc_client.InferRequestedOutput("A"), grpc_client.InferRequestedOutput("B", class_count=5)],
        sequence_id=0, sequence_start=False, sequence_end=False, parameters={"model": "demo"},
    )  # fmt: skip
    message = build_message("signs", {**arrays, "SHARED": shared}, {"A": 0, "B": 5}, "1", 2, {"model": "demo"})
    assert service_pb2.ModelInferRequest.FromString(message) == expected


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31 - 1])
def test_lengths_are_varints(number: int) -> None:
    message = b"\x10" + encode_varint(number)  # field 2, a varint
    assert service_pb2.ModelRepositoryParameter.FromString(message).int64_param == number


def test_classes_are_ranked_and_labeled(triton: Triton) -> None:
    ranked = asked(triton.address, lambda t: t.classify("signs", FRAMES, "LOGITS__0", 3))
    assert ranked == [(3, "help"), (2, "hello"), (1, "drink")]


def test_clip_is_recognized_over_the_wire(tmp_path: Path, triton: Triton) -> None:
    triton.logits = lambda frames: np.array([len(frames), frames.shape[1], 0, 0], np.float32)
    with Recognizer(triton.address) as recognizer:
        recognition = recognizer.recognize(videos.clip(tmp_path / "clip.mp4", num_frames=20))
    assert [(p.gloss, p.logit) for p in recognition.predictions[:2]] == [("drink", 224.0), ("book", 20.0)]


@pytest.mark.parametrize("fault", [UNREACHABLE, BUSY], ids=["unreachable", "busy"])
def test_request_to_an_unreachable_or_busy_server_is_retried(triton: Triton, fault: tuple[Any, str]) -> None:
    triton.faults = [fault, fault]
    assert infer_logits(triton.address) == [0, 1, 2, 3]
    assert len(triton.asked) == 3


@pytest.mark.parametrize(("fault", "times", "error", "says"), [
    (UNREACHABLE, 4, ServerError, "no server answers at 127.0.0.1"),
    (BUSY, 4, ServerError, "signs on 127.0.0.1.* is too busy .*no more room. Try again later"),
    (INVALID, 1, ContractError, "signs on 127.0.0.1.* cannot answer this .*unexpected shape"),
    (RESTRICTED, 1, ServerError, r"refused the call .*it requires an API key \(--api-key\)"),
], ids=["unreachable", "busy", "invalid", "restricted"])  # fmt: skip
def test_persistent_fault_is_reported(
    triton: Triton, fault: tuple[Any, str], times: int, error: type[AslTritonError], says: str
) -> None:
    triton.faults = [fault] * 10
    with pytest.raises(error, match=says):
        infer_logits(triton.address)
    assert len(triton.asked) == times


def test_resending_can_be_turned_off(triton: Triton) -> None:
    triton.faults = [BUSY]
    with pytest.raises(ServerError, match="too busy"):
        infer_logits(triton.address, resend=False)
    assert len(triton.asked) == 1


def test_server_that_starts_late_is_reached() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    async def ask(transport: GrpcTransport) -> list[float]:
        with pytest.raises(ServerError, match="no server answers"):
            await transport.server_version()
        with serving(Triton(), address=address):
            return list((await transport.infer("signs", FRAMES, ["LOGITS__0"]))["LOGITS__0"][0])

    assert asked(address, ask) == [0, 1, 2, 3]


def test_exceeded_deadline_is_reported() -> None:
    release = threading.Event()

    def stuck(_frames: np.ndarray) -> np.ndarray:
        release.wait()
        return np.zeros(len(GLOSSES), np.float32)

    with serving(Triton(logits=stuck)) as triton:
        try:
            with pytest.raises(ServerError, match=r"did not answer within 0.2 s .*Raise --timeout"):
                infer_logits(triton.address, timeout_s=0.2)
            assert len(triton.asked) == 1
        finally:
            release.set()


def test_requests_in_flight_are_bounded(triton: Triton) -> None:
    together = threading.Barrier(3, timeout=60)  # breaks if a request waits alone

    def meet(_frames: np.ndarray) -> np.ndarray:
        together.wait()
        return np.zeros(len(GLOSSES), np.float32)

    triton.logits = meet

    async def ask(transport: GrpcTransport) -> int:
        return len(await asyncio.gather(*(transport.infer("signs", FRAMES, ["LOGITS__0"]) for _ in range(12))))

    assert asked(triton.address, ask, in_flight=3) == 12
    assert triton.most_at_once == 3


def test_empty_output_names_its_cause(triton: Triton) -> None:
    triton.empty = True
    for ask in (
        lambda t: t.infer("signs", FRAMES, ["LOGITS__0"]),
        lambda t: t.classify("signs", FRAMES, "LOGITS__0", 4),
    ):
        with pytest.raises(ContractError, match=r"answered with an empty LOGITS__0.*numpy<2"):
            asked(triton.address, ask)


def test_missing_output_is_reported(triton: Triton) -> None:
    with pytest.raises(ContractError, match="empty NONE"):
        asked(triton.address, lambda t: t.infer("signs", FRAMES, ["LOGITS__0", "NONE"]))


def test_missing_model_is_reported(triton: Triton) -> None:
    with pytest.raises(ContractError, match=r"nobody on 127.0.0.1.* cannot answer this: .*unknown model"):
        asked(triton.address, lambda t: t.describe("nobody"))


def test_server_that_is_not_ready_is_reported(triton: Triton) -> None:
    triton.ready = False
    with pytest.raises(ServerError, match="is still starting, or a model failed to load"):
        read_version(triton.address)


def test_closed_transport_reconnects(triton: Triton) -> None:
    async def ask(transport: GrpcTransport) -> list[str]:
        first = await transport.server_version()
        await transport.close()
        await transport.close()
        return [first, await transport.server_version()]

    assert asked(triton.address, ask) == ["2.80.0", "2.80.0"]


@contextmanager
def run_http_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_http_port_is_reported() -> None:
    with run_http_server() as address, pytest.raises(ServerError, match=r"another server's gRPC port .*8000 is HTTP\)"):
        read_version(address)


def test_server_other_than_triton_is_reported() -> None:
    with serving(None) as other, pytest.raises(ServerError, match="is not Triton: use another"):
        read_version(other.address)


def test_request_beyond_the_servers_size_limit_is_reported() -> None:
    with (
        serving(Triton(), max_bytes=1000) as triton,
        pytest.raises(ServerError, match=r"rejects requests as large as those for signs.*larger than max"),
    ):
        infer_logits(triton.address)


@pytest.mark.parametrize("address", ["localhost:1", "no-such-host.invalid:8001", "unix:/nowhere"])
def test_address_without_a_server_is_reported(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    for ask in (read_version, infer_logits):
        with pytest.raises(ServerError, match=f"no server answers at {address}: start one"):
            ask(address, timeout_s=10)
    assert capfd.readouterr() == ("", "")


def test_proxy_is_not_used_for_this_machine(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for host in ("localhost", "127.0.0.1"):
        assert read_version(triton.address.replace("127.0.0.1", host)) == "2.80.0"


@pytest.mark.parametrize(("status", "message", "again", "error", "says"), [
    ("UNAVAILABLE", "failed to connect to all addresses", True, ServerError, "no server answers at here:1: start one"),
    ("UNAVAILABLE", "Exceeds maximum queue size", True, BusyError, "signs on here:1 is too busy"),
    ("UNAVAILABLE", "Socket closed", True, ServerError, "closed the connection"),
    ("UNAVAILABLE", "Tls handshake failed: BAD", True, ServerError, "TLS with here:1 failed"),
    ("UNAVAILABLE", "This protocol is restricted", False, ServerError, "--api-key"),
    ("RESOURCE_EXHAUSTED", "too many", True, BusyError, "too busy"),
    ("RESOURCE_EXHAUSTED", "message larger than max (9 vs. 1)", False, ServerError, "rejects requests as large"),
    ("UNAUTHENTICATED", "who are you", False, ServerError, "--api-key"),
    ("PERMISSION_DENIED", "not you", False, ServerError, "--api-key"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", False, ServerError, "did not answer within 5 s"),
    ("UNAVAILABLE", "Request timeout expired", True, BusyError, "is too busy .*waited longer than its queue"),
    ("NOT_FOUND", "Request for unknown model: 'signs' is not found", False, ContractError, "unknown model"),
    ("INVALID_ARGUMENT", "unexpected shape", False, ContractError, "cannot answer this .*: unexpected shape"),
    ("UNIMPLEMENTED", "Method not found!", False, ServerError, "is not Triton"),
    ("INTERNAL", "CUDA  out of\nmemory", False, ServerError, "signs on here:1 failed .*: CUDA out of memory"),
    ("UNAVAILABLE", "Server is stopping, scheduler ...", True, BusyError, "here:1 is stopping .request c0ffee"),
    ("NOT_FOUND", "unknown model: 'signs' has no available versions", True, BusyError, "here:1 is stopping"),
    ("CANCELLED", "CANCELLED", True, BusyError, "here:1 is stopping"),
    (None, "Channel is closed", False, ServerError, "signs on here:1 failed"),
])  # fmt: skip
def test_status_becomes_a_clear_error(
    status: str | None, message: str, again: bool, error: type[AslTritonError], says: str
) -> None:
    exception = InferenceServerException(message, f"StatusCode.{status}" if status else None)
    assert is_retryable(exception) == again
    with pytest.raises(error, match=says):
        raise translate_error(exception, "here:1", "signs", 5.0, "c0ffee")


def test_other_exceptions_are_not_retryable() -> None:
    assert not is_retryable(ValueError("UNAVAILABLE"))
