"""A real Triton: what it serves, and how it starts, fails and stops."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from asl_triton.errors import AslTritonError, ServerError
from asl_triton.transport.shm_region import KEY_HEADER, key_headers
from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.ports import claim_ports

from .conftest import SUMMING, ProcessTree, request_sum, write_model

CLIP_BYTES = 64 * 224 * 224 * 3
FAILING = r"""
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("weights\nare cut off")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    repository = tmp_path_factory.mktemp("served")
    write_model(repository, "summing")
    write_model(repository, "other")
    write_model(repository, "unwanted", "raise RuntimeError('this model must not be loaded')")
    write_model(repository, ".half-written", "raise RuntimeError('hidden folders must not be loaded')")
    (repository / "README.md").touch()
    (repository / "no-model").mkdir()
    with LocalTriton(repository, models=["summing", "other"], shared_memory=True) as running:
        yield running


def test_server_answers_on_three_loopback_ports(server: LocalTriton) -> None:
    addresses = [server.address, server.http_address, server.metrics_address]
    assert len(set(addresses)) == 3
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    assert request_sum(server.address, "summing", 10) == 10
    with urlopen(f"http://{server.http_address}/v2/health/ready") as response:
        assert response.status == 200
    with urlopen(f"http://{server.metrics_address}/metrics") as response:
        assert b"nv_inference_request_success" in response.read()


def test_server_binds_to_no_other_address(server: LocalTriton) -> None:
    port = int(server.address.rpartition(":")[2])
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_only_the_named_models_are_loaded(server: LocalTriton) -> None:
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        index = client.get_model_repository_index(as_json=True)["models"]
    assert sorted(model["name"] for model in index) == ["other", "summing"]
    assert server.models == ["summing", "other"]


def test_two_clips_in_one_request_fit_into_shared_memory(server: LocalTriton) -> None:
    assert request_sum(server.address, "summing", 2 * CLIP_BYTES) == 2 * CLIP_BYTES


def test_callers_can_neither_map_memory_nor_load_models(server: LocalTriton) -> None:
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.register_system_shared_memory("frames", "/anything", 16)
        with pytest.raises(InferenceServerException, match="not allowed"):
            client.load_model("unwanted")


def test_clients_of_the_same_user_find_the_shared_memory_key(server: LocalTriton) -> None:
    (key,) = Path("/dev/shm").glob(f"asl-triton-*-{server.address.rpartition(':')[2]}.key")
    assert key.stat().st_mode & 0o777 == 0o600
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        assert not client.get_system_shared_memory_status(headers=key_headers(server.address)).regions
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_system_shared_memory_status(headers={KEY_HEADER: "guessed"})


def test_two_servers_run_at_once(server: LocalTriton, repository: Path) -> None:
    with LocalTriton(repository) as second:
        assert request_sum(second.address, "summing", 7) == 7
        assert request_sum(server.address, "summing", 8) == 8
        first, other = ProcessTree.find(server.supervisor_pid), ProcessTree.find(second.supervisor_pid)
        assert not set(first.find_shared_memory()) & set(other.find_shared_memory())
    assert request_sum(server.address, "summing", 9) == 9


def test_half_exported_models_are_ignored(repository: Path) -> None:
    write_model(repository, ".tmp-wlasl", "raise RuntimeError('half a model')")
    with LocalTriton(repository) as server:
        assert server.models == ["summing"]


def test_stop_leaves_nothing_behind_and_can_be_repeated(
    repository: Path, list_temporary: Callable[[], list[str]]
) -> None:
    with LocalTriton(repository) as server:
        tree = ProcessTree.find(server.supervisor_pid)
        tree.assert_complete()
        server.stop()
        tree.assert_gone()
        server.stop()
    assert list_temporary() == []


def test_stop_ends_the_decoders_of_whole_video_models(repository: Path) -> None:
    with LocalTriton(repository, recognize_sign=True) as server:
        assert server.models == ["summing", "recognize_sign", "recognize_sign_stream"]
        tree = ProcessTree.find(server.supervisor_pid)
        decoders = [p for p in tree.processes if "asl_triton.decoding.worker" in p.cmdline()]
        assert len(decoders) == 2
        assert request_sum(server.address, "summing", 3) == 3
    tree.assert_gone()


def test_requested_log_is_kept(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "triton.log"
    with LocalTriton(repository, log_path=log) as server:
        assert server.log_path == log
    assert "successfully loaded 'summing'" in log.read_text()


def test_killed_server_is_reported_and_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with LocalTriton(repository, log_path=log) as server:
        tree = ProcessTree.find(server.supervisor_pid)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=rf"killed by SIGKILL. Its log, {log}, ends:\n") as failure:
            server.wait()
    assert "Started Metrics Service" in str(failure.value)
    tree.assert_gone()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import not_installed", "ModuleNotFoundError: No module named 'not_installed'"),
        ("def broken(:", r"SyntaxError: invalid syntax \(model.py, line 1\)"),
        (FAILING, "ValueError: weights are cut off"),
        ("import os; os._exit(1)", "Stub process .* is not healthy"),
    ],
)
def test_failing_model_is_named_with_the_reason(
    repository: Path, list_temporary: Callable[[], list[str]], code: str, reason: str
) -> None:
    write_model(repository, "broken", code)
    server = LocalTriton(repository)
    with pytest.raises(ServerError, match=rf"could not load 1 of 2 models: broken: {reason}\. Its log is ") as failure:
        server.start()
    assert "\n" not in str(failure.value)
    # Only the log stays.
    assert list_temporary() == [server.log_path.name]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('backend: "python"\nbogus: 1', '2:6: .* no field named "bogus"'),
        ('name: "another"\nbackend: "python"', "directory name must equal model name"),
    ],
)
def test_invalid_config_is_named_with_the_reason(repository: Path, config: str, reason: str) -> None:
    (repository / "summing" / "configs" / "wheel.pbtxt").write_text(config)
    with pytest.raises(ServerError, match=rf"could not load 1 model: summing: .*{reason}"):
        LocalTriton(repository).start()


def test_model_that_never_loads_hits_the_startup_timeout(
    repository: Path, list_temporary: Callable[[], list[str]]
) -> None:
    write_model(repository, "endless", "import threading; threading.Event().wait()")
    server = LocalTriton(repository, startup_timeout_s=1.5)
    with pytest.raises(ServerError, match=r"not ready after 1\.5 seconds") as failure:
        server.start()
    assert "loading: endless:1" in str(failure.value)
    assert list_temporary() == [server.log_path.name]


def test_port_taken_during_startup_is_reported(repository: Path, tmp_path: Path) -> None:
    """Ports are checked first, but another process (here, a model) can take one while the models load."""
    port = claim_ports("127.0.0.1", {"HTTP": None})["HTTP"]
    write_model(repository, "thief", f"import socket\nsocket = socket.create_server(('127.0.0.1', {port}))\n{SUMMING}")
    says = rf"exited during startup, with exit code 1: failed to start HTTP service: .*127.0.0.1:{port}' already in use"
    with pytest.raises(ServerError, match=says):
        LocalTriton(repository, http_port=port, log_path=tmp_path / "triton.log").start()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"models": ["wlasl"]}, "has no model 'wlasl', only summing"),
        ({"grpc_port": 70_000}, "70000 is not a port"),
        ({"grpc_port": 20_001, "http_port": 20_001}, "port 20001 is given twice"),
        ({"host": "203.0.113.7"}, "cannot bind to 203.0.113.7: it is not an address of this machine"),
        ({"host": "::1"}, "cannot bind to '::1': not a host name or IPv4 address"),
        ({"log_path": Path("/proc/no/such/log")}, "cannot write the log /proc/no/such/log"),
    ],
)
def test_bad_options_are_reported_in_one_sentence(
    repository: Path, list_temporary: Callable[[], list[str]], options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(AslTritonError, match=sentence) as failure:
        LocalTriton(repository, **options).start()  # type: ignore[arg-type]
    assert "\n" not in str(failure.value)
    assert list_temporary() == []


def test_busy_port_is_reported(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} on 127.0.0.1 is in use.*--metrics-port"):
            LocalTriton(repository, metrics_port=port).start()
