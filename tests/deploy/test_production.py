"""The wheel's real Triton with the production flags: access control, limits, logs, metrics and traces."""

import asyncio
import http.server
import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from asl_triton.errors import BusyError, ServerError
from asl_triton.models.served import list_models
from asl_triton.presets import PRESETS
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.transport.base import Transport
from asl_triton.transport.factory import make_transport
from asl_triton.transport.security import Security
from asl_triton.transport.triton_grpc import GrpcTransport
from asl_triton_export.checkpoint import load_checkpoint
from tests.certificates import Certificates, make_certificates
from tests.command_line import asl_triton
from tests.deploy.production import API_KEY, ProductionTriton
from tests.exports import export_shared
from tests.live.conftest import write_clip
from tests.networks import GLOSSES, save_checkpoint

T = TypeVar("T")
KEY = {"triton-grpc-protocol-api-key": API_KEY}
FRAMES = {"FRAMES__0": np.zeros((1, 16, 224, 224, 3), np.uint8)}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`signs` as exported, and `narrow`, whose queue holds two requests for up to 20 ms."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = load_checkpoint(save_checkpoint(folder / "small.pt"))
    repository = folder / "repository"
    for name in ("signs", "narrow"):
        export_shared(tmp_path_factory, checkpoint, GLOSSES, PRESETS["wlasl"], repository, name)
    config = repository / "narrow" / "configs" / "wheel.pbtxt"
    text = config.read_text().replace("max_queue_size: 256", "max_queue_size: 2")
    config.write_text(text.replace("default_timeout_microseconds: 60000000", "default_timeout_microseconds: 20000"))
    return repository


class Collector(http.server.BaseHTTPRequestHandler):
    """Receives spans like an OpenTelemetry collector: OTLP over HTTP, as JSON."""

    spans: list[dict[str, Any]]
    received: threading.Event

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in body["resourceSpans"]:
            self.spans += [span for scope in resource["scopeSpans"] for span in scope["spans"]]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
        self.received.set()

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[type[Collector]]:
    """A collector that listens at `url` for the spans of Triton."""

    class Listening(Collector):
        spans: list[dict[str, Any]] = []  # noqa: RUF012
        received = threading.Event()
        url = ""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listening) as server:
        Listening.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        threading.Thread(target=server.serve_forever).start()
        yield Listening
        server.shutdown()


@pytest.fixture(scope="module")
def triton(models: Path, certificates: Certificates, collector: Any) -> Iterator[ProductionTriton]:
    """Mutual TLS. Reading a model needs the key, inference does not. Traces go to the collector."""
    flags = ["--trace-config=opentelemetry,bsp_schedule_delay=100"]
    with ProductionTriton(models, certificates, more_flags=flags, otlp_url=collector.url) as running:
        yield running


@pytest.fixture(scope="module")
def keyed_triton(models: Path) -> Iterator[ProductionTriton]:
    """Behind a gateway that terminates TLS: inference needs the key too."""
    with ProductionTriton(models, key_for_inference=True) as running:
        yield running


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for number in range(2):
        write_clip(tmp_path / "clips" / f"{number}.mp4", seed=number)
    return tmp_path / "clips"


def make_security(certificates: Certificates, own: str | None = "client", api_key: str | None = API_KEY) -> Security:
    """Return the client's side of mutual TLS."""
    files = certificates.build_security("authority", own)
    return Security(tls_ca=files.tls_ca, tls_cert=files.tls_cert, tls_key=files.tls_key, api_key=api_key)


def list_tls_options(certificates: Certificates) -> list[object]:
    files = make_security(certificates)
    return ["--tls-ca", files.tls_ca, "--tls-cert", files.tls_cert, "--tls-key", files.tls_key]


def call_triton(triton: ProductionTriton, security: Security, call: Callable[[Any], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        transport = make_transport(triton.address, security=security, timeout_s=20, **options)
        try:
            return await call(transport)
        finally:
            await transport.close()

    return asyncio.run(run())


def infer(transport: Transport) -> Awaitable[Any]:
    return transport.infer("signs", FRAMES, ["LOGITS__0"])


def test_our_certificate_and_key_are_accepted(
    triton: ProductionTriton,
    certificates: Certificates,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Recognizer(triton.address, model="signs", security=make_security(certificates)) as recognizer:
        assert recognizer.recognize(clips / "0.mp4").gloss in GLOSSES
    options = ["--server", triton.address, *list_tls_options(certificates), "--api-key", API_KEY, "--model", "signs"]
    done = asl_triton(capsys, "batch", clips, *options, "--output", tmp_path / "out")
    assert done.code == 0 and "2 recognized" in done.out
    assert (tmp_path / "out" / "results.csv").is_file()


@pytest.mark.parametrize(("own", "says"), [
    (None, "closed the connection .*: it requires a client certificate .--tls-cert"),
    ("late", "the client certificate .*late.pem .--tls-cert. has expired"),
    ("foreign", "it does not trust the authority that signed the client certificate .*foreign.pem"),
], ids=["none", "expired", "another authority"])  # fmt: skip
def test_invalid_client_certificate_is_refused(
    triton: ProductionTriton, certificates: Certificates, own: str | None, says: str
) -> None:
    with pytest.raises(ServerError, match=says):
        call_triton(triton, make_security(certificates, own), infer)


@pytest.mark.parametrize(("security", "says"), [
    (Security(), "closed the connection .*: it uses TLS: give its authority"),
    (Security(tls=True), "its certificate is not signed by a trusted authority"),
], ids=["no TLS", "no trusted authority"])  # fmt: skip
def test_caller_without_our_authority_gets_a_clear_error(
    triton: ProductionTriton, security: Security, says: str
) -> None:
    with pytest.raises(ServerError, match=says):
        call_triton(triton, security, infer)


@pytest.mark.parametrize(("key", "says"), [
    (None, "refused the call: it requires an API key .--api-key"), ("wrong", "refused .*: the --api-key is incorrect"),
])  # fmt: skip
def test_contract_needs_the_key(
    triton: ProductionTriton, certificates: Certificates, key: str | None, says: str
) -> None:
    calls: list[Callable[[Transport], Awaitable[Any]]] = [
        lambda transport: transport.model_names(),
        lambda transport: transport.describe("signs"),
        lambda transport: transport.statistics("signs"),
    ]
    for call in calls:
        with pytest.raises(ServerError, match=says):
            call_triton(triton, make_security(certificates, api_key=key), call)


def test_contract_is_readable_with_the_key(triton: ProductionTriton, certificates: Certificates) -> None:
    found = call_triton(triton, make_security(certificates), list_models)
    assert [model.name for model in found] == ["narrow", "signs"]


def test_inference_and_health_need_no_key(triton: ProductionTriton, certificates: Certificates) -> None:
    answers = call_triton(triton, make_security(certificates, api_key=None), infer)
    assert answers["LOGITS__0"].shape == (1, len(GLOSSES))
    files = make_security(certificates)
    with grpc_client.InferenceServerClient(
        triton.address,
        ssl=True,
        root_certificates=str(files.tls_ca),
        certificate_chain=str(files.tls_cert),
        private_key=str(files.tls_key),
    ) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("signs")


def test_inference_can_require_the_key(keyed_triton: ProductionTriton) -> None:
    for key in (None, "wrong"):
        with pytest.raises(ServerError, match=r"refused the call \(request [0-9a-f]{32}\): "):
            call_triton(keyed_triton, Security(api_key=key), infer)
    assert call_triton(keyed_triton, Security(api_key=API_KEY), infer)["LOGITS__0"].shape == (1, len(GLOSSES))


def test_command_line_reads_key_and_server_from_the_environment(
    keyed_triton: ProductionTriton, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASL_TRITON_SERVER", keyed_triton.address)
    refused = asl_triton(capsys, "models")
    assert refused.code == 1 and "it requires an API key (--api-key)" in refused.output
    monkeypatch.setenv("ASL_TRITON_API_KEY", API_KEY)
    assert asl_triton(capsys, "models", "--json").out.count('"name": ') >= 2


def test_models_cannot_be_loaded_or_unloaded(keyed_triton: ProductionTriton) -> None:
    with grpc_client.InferenceServerClient(keyed_triton.address) as client:
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
                change("signs", headers=KEY)
        assert client.is_model_ready("signs")


def test_shared_memory_traces_and_logging_are_closed_to_everyone(keyed_triton: ProductionTriton) -> None:
    with grpc_client.InferenceServerClient(keyed_triton.address) as client:
        calls: list[Callable[[], Any]] = [
            lambda: client.register_system_shared_memory("region", "/region", 16, headers=KEY),
            lambda: client.get_system_shared_memory_status(headers=KEY),
            lambda: client.get_cuda_shared_memory_status(headers=KEY),
            lambda: client.update_trace_settings(settings={"trace_rate": "1"}, headers=KEY),
            lambda: client.update_log_settings({"log_verbose_level": 1}, headers=KEY),
        ]
        for call in calls:
            with pytest.raises(InferenceServerException, match="restricted"):
                call()


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/v2"), ("GET", "/v2/models/signs"), ("GET", "/v2/models/signs/config"), ("GET", "/v2/models/stats"),
    ("POST", "/v2/models/signs/infer"), ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/signs/unload"), ("GET", "/v2/systemsharedmemory/status"),
    ("GET", "/v2/trace/setting"), ("GET", "/v2/logging"),
])  # fmt: skip
def test_http_answers_only_health(triton: ProductionTriton, method: str, path: str) -> None:
    request = urllib.request.Request(f"http://{triton.http_address}{path}", b"{}" if method == "POST" else None, KEY)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403
    refused.value.close()
    with urllib.request.urlopen(f"http://{triton.http_address}/v2/health/live") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(("option", "value"), [
    ("model_control_mode", "MODE_NONE"), ("strict_model_config", "1"), ("strict_readiness", "1"),
    ("exit_timeout", "10"),
])  # fmt: skip
def test_triton_logs_its_flags(triton: ProductionTriton, option: str, value: str) -> None:
    (row,) = (line for line in triton.log.splitlines() if line.startswith(f"| {option} "))
    assert row.split("|")[2].strip() == value


def test_only_used_endpoints_listen(triton: ProductionTriton) -> None:
    started = [line for line in triton.log.splitlines() if "Started" in line]
    assert len(started) == 3
    assert all(any(service in line for line in started) for service in ("GRPCInference", "HTTPService", "Metrics"))


def test_configuration_is_served_as_written(triton: ProductionTriton, models: Path, certificates: Certificates) -> None:
    async def read(transport: GrpcTransport) -> Any:
        client = await transport.connect()
        return (await client.get_model_config("signs", headers=KEY)).config

    config = call_triton(triton, make_security(certificates), read, shared_memory="grpc")
    assert (config.backend, config.max_batch_size, len(config.instance_group)) == ("python", 8, 1)
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert config.parameters["asl_triton.preset"].string_value == PRESETS["wlasl"].to_json()


def test_damaged_model_aborts_the_start(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "signs", tmp_path / "repository" / "signs")
    (tmp_path / "repository" / "signs" / "1" / "model.pt").write_bytes(b"damaged")
    broken = ProductionTriton(tmp_path / "repository")
    supervisor = broken.launch()
    try:
        assert supervisor.has_ended(60)
        assert supervisor.describe_end() == "with exit code 1"
        assert not broken.is_ready()
    finally:
        broken.__exit__(None, None, None)


def read_metrics(triton: ProductionTriton) -> dict[tuple[str, ...], float]:
    """Return samples by name and label values, which are sorted by label name."""
    with urllib.request.urlopen(f"http://{triton.metrics_address}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for s in samples}


def test_metrics_have_request_counts_and_latency_quantiles(
    triton: ProductionTriton, certificates: Certificates
) -> None:
    before = read_metrics(triton)
    call_triton(triton, make_security(certificates), infer)
    success = next(key for key in before if key[0].startswith("nv_inference_request_success") and "signs" in key)
    deadline = time.monotonic() + 30
    while (after := read_metrics(triton))[success] <= before[success]:  # Triton answers before it counts
        assert time.monotonic() < deadline
        time.sleep(0.1)
    quantiles = {key[2] for key in after if key[0] == "nv_inference_request_summary_us"}
    assert quantiles == {"0.5", "0.95", "0.99"}


def test_full_queue_is_reported(keyed_triton: ProductionTriton) -> None:
    """Two of forty requests can wait. Most others are rejected or wait too long, however often they are resent."""
    clip = {"FRAMES__0": np.zeros((1, 64, 224, 224, 3), np.uint8)}

    async def flood(transport: Transport) -> list[Any]:
        requests = [transport.infer("narrow", clip, ["LOGITS__0"]) for _ in range(40)]
        return await asyncio.gather(*requests, return_exceptions=True)

    answers = call_triton(keyed_triton, Security(api_key=API_KEY), flood, in_flight=40)
    rejected = [answer for answer in answers if isinstance(answer, Exception)]
    assert 0 < len(rejected) < 40
    for error in rejected:
        assert isinstance(error, BusyError)
        assert re.match(r"narrow on 127.0.0.1:\d+ is too busy \(request [0-9a-f]{32}\): ", str(error))
    assert any("Exceeds maximum queue size" in str(error) for error in rejected)
    # Triton counts the requests that waited too long, but not those that a full queue rejected.
    (key,) = (key for key in read_metrics(keyed_triton) if "narrow" in key and "REJECTED" in key)
    assert read_metrics(keyed_triton)[key] > 0


def test_trace_of_a_caller_continues_in_triton(
    triton: ProductionTriton, certificates: Certificates, collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    names: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + 60
    with trace.get_tracer("test").start_as_current_span("a caller") as caller:
        trace_id = f"{caller.get_span_context().trace_id:032x}"
        while set(names) != {"InferRequest", "signs", "compute"}:
            assert time.monotonic() < deadline, f"Triton sent {list(names)}"
            # Triton may hold a trace back until the next request.
            call_triton(triton, make_security(certificates), infer)
            collector.received.wait(0.5)
            collector.received.clear()
            names = {span["name"]: span for span in list(collector.spans) if span["traceId"] == trace_id}
    request = names["InferRequest"]
    assert request["parentSpanId"] not in ("", f"{caller.get_span_context().span_id:016x}")  # the client's own span
