"""Attacks on production: its server flags, on the wheel's Triton, and the container's health check."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from asl_triton.models.served import FRAMES
from asl_triton_deploy.production.health import STATE, HealthState, find_state, main
from asl_triton_deploy.server_flags import CLOSED_KEY_NAME
from tests.deploy.production import ProductionTriton
from tests.security.test_service import DEEP, ENORMOUS, OVERFLOWING, call_raw_grpc, call_raw_http, find_flag

HEALTH_KEY = "of-the-health-check-alone"


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[ProductionTriton]:
    with ProductionTriton(repository, health_key=HEALTH_KEY) as running:
        yield running


def write_state(triton: ProductionTriton, folder: Path, key: str = HEALTH_KEY) -> dict[str, str]:
    """Write the state that the entry point leaves for the health check; return the variables that locate it."""
    variables = {"ASL_TRITON_SERVED": str(folder / "models")}
    state = HealthState(triton.pid, int(triton.http_address.rpartition(":")[2]), key, ["small"])
    state.save(find_state(variables))
    return variables


def kill_model(triton: ProductionTriton) -> None:
    """Kill the model with one request that needs no key."""
    request = service_pb2.ModelInferRequest(model_name="small", raw_input_contents=[b""])
    request.inputs.add(name=FRAMES, datatype="UINT8", shape=OVERFLOWING)
    with (
        tritonclient.grpc.InferenceServerClient(triton.address) as client,
        pytest.raises(Exception, match="not healthy"),
    ):
        client._client_stub.ModelInfer(request, timeout=30)


def test_key_visible_in_ps_does_not_open_closed_endpoints(triton: ProductionTriton) -> None:
    command_line = Path(f"/proc/{triton.pid}/cmdline").read_bytes().decode().split("\0")
    name, key = find_flag(command_line, "shared-memory")
    assert name == CLOSED_KEY_NAME
    assert b"grpc-status\x010" not in call_raw_grpc(triton.address, f"triton-grpc-protocol-{name}", key)
    assert call_raw_http(triton.http_address, name, key).startswith(b"HTTP/1.1 403")
    assert call_raw_http(triton.http_address, "api-key", HEALTH_KEY).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("path", ["/v2", "/v2/models/small/stats", "/v2/repository/index", "/v2/logging"])
def test_health_check_key_opens_no_other_endpoint(triton: ProductionTriton, path: str) -> None:
    request = urllib.request.Request(f"http://{triton.http_address}{path}", headers={"api-key": HEALTH_KEY})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    with refused.value as answer:
        assert answer.code in (403, 405)


def test_health_check_state_is_private(triton: ProductionTriton, tmp_path: Path) -> None:
    write_state(triton, tmp_path)
    write_state(triton, tmp_path)  # as when a container is restarted
    assert (tmp_path / STATE).stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / STATE).read_text())["models"] == ["small"]


def test_health_check_requires_its_state_and_key(
    triton: ProductionTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], {"ASL_TRITON_SERVED": str(tmp_path / "models")}) == 1
    assert "which the entry point writes" in capsys.readouterr().err
    assert main([], write_state(triton, tmp_path, key="wrong")) == 1
    assert "cannot read the configuration of small: This API is restricted" in capsys.readouterr().err
    assert main([], write_state(triton, tmp_path)) == 0


@pytest.mark.parametrize("shape", [[1, 0, 224, 224, 3], [1, 1, 224, 224, 3]])
def test_clip_of_wrong_length_is_refused_without_revealing_paths(triton: ProductionTriton, shape: list[int]) -> None:
    request = service_pb2.ModelInferRequest(model_name="small")
    request.inputs.add(name=FRAMES, datatype="UINT8", shape=shape)
    request.raw_input_contents.append(bytes(shape[1] * 224 * 224 * 3))
    with tritonclient.grpc.InferenceServerClient(triton.address) as client, pytest.raises(Exception) as refused:
        client._client_stub.ModelInfer(request, timeout=30)
    assert f"FRAMES__0 has {shape[1]} frames: this model takes 9 to 300" in str(refused.value)
    assert ".py" not in str(refused.value).partition("details")[2].partition("\n")[0]


@pytest.mark.parametrize("body", [DEEP, json.dumps({"inputs": [{"name": FRAMES, "shape": ENORMOUS}]}).encode()])
def test_bodies_that_would_crash_triton_are_not_parsed(triton: ProductionTriton, body: bytes) -> None:
    request = urllib.request.Request(f"http://{triton.http_address}/v2/models/small/infer", body)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)
    assert triton.is_ready()


def test_enormous_tensor_is_refused_over_grpc(triton: ProductionTriton) -> None:
    request = service_pb2.ModelInferRequest(model_name="small", raw_input_contents=[b""])
    request.inputs.add(name=FRAMES, datatype="UINT8", shape=ENORMOUS)
    with tritonclient.grpc.InferenceServerClient(triton.address) as client, pytest.raises(Exception, match="mismatch"):
        client._client_stub.ModelInfer(request, timeout=30)
    assert triton.is_ready()


def test_health_check_fails_for_a_dead_model_and_stops_triton(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProductionTriton(repository, health_key=HEALTH_KEY) as triton:
        variables = write_state(triton, tmp_path)
        assert main(["--stop"], variables) == 0
        kill_model(triton)
        assert triton.is_ready()  # Triton itself still reports ready
        assert main([], variables) == 1
        assert "small returned an error: Stub process 'small_0_0' is not healthy" in capsys.readouterr().err
        with (
            tritonclient.grpc.InferenceServerClient(triton.address) as client,
            pytest.raises(InferenceServerException),
        ):
            client.infer("small", [])
        began_s = time.monotonic()
        assert main(["--stop"], variables) == 1
        assert triton._supervised is not None and triton._supervised.has_ended(60)
        assert time.monotonic() - began_s < 45
