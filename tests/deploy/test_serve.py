"""`asl-triton serve` in its own process: signals, crashes and detached servers."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asl_triton_deploy.ports import claim_ports

from .conftest import ProcessTree, request_sum, write_model

SERVE_ALONE = """
import sys, typer
from asl_triton.cli.serve import serve
from asl_triton.errors import AslTritonError
try:
    typer.run(serve)
except AslTritonError as exc:
    sys.exit(str(exc))
"""
SERVE = [sys.executable, "-c", SERVE_ALONE]
FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--no-recognize-sign"]

Serve = Callable[..., subprocess.CompletedProcess[str]]
Foreground = tuple[subprocess.Popen[str], dict[str, Any]]


@pytest.fixture
def environment(tmp_path: Path, list_temporary: Callable[[], list[str]]) -> dict[str, str]:
    """The environment of a new user, with state and temporary files under `tmp_path`."""
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "TMPDIR": tempfile.gettempdir()}


@pytest.fixture
def serve(environment: dict[str, str]) -> Iterator[Serve]:
    """Run `asl-triton serve` until it exits. A detached server is stopped after the test."""

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*SERVE, *map(str, options)], env=environment, capture_output=True, text=True)

    yield run
    run("--stop")


@pytest.fixture
def foreground(environment: dict[str, str], repository: Path, tmp_path: Path) -> Iterator[Foreground]:
    """A running `asl-triton serve --json` and what it printed when it was ready."""
    command = [*SERVE, "--repository", str(repository), *FREE_PORTS, "--json", "--log", str(tmp_path / "triton.log")]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_every_process(
    foreground: Foreground, list_temporary: Callable[[], list[str]], number: signal.Signals
) -> None:
    process, ready = foreground
    tree = ProcessTree.find(ready["pid"])
    tree.assert_complete()
    process.send_signal(number)
    _, messages = process.communicate()
    assert process.returncode == 0
    assert messages.endswith("Stopping Triton.\n")
    tree.assert_gone()
    assert list_temporary() == []


def test_killed_command_leaves_nothing_behind(foreground: Foreground, list_temporary: Callable[[], list[str]]) -> None:
    process, ready = foreground
    tree = ProcessTree.find(ready["pid"])
    tree.assert_complete()
    process.kill()
    tree.assert_gone()
    assert list_temporary() == []


def test_killed_supervisor_leaves_nothing_behind(
    foreground: Foreground,
) -> None:
    process, ready = foreground
    tree = ProcessTree.find(ready["pid"])
    os.kill(ready["pid"], signal.SIGKILL)
    process.communicate()
    assert process.returncode == 1
    tree.assert_gone()


def test_dead_server_is_reported_with_its_log(
    foreground: Foreground,
) -> None:
    process, ready = foreground
    (triton,) = psutil.Process(ready["pid"]).children()
    triton.kill()
    _, messages = process.communicate()
    assert process.returncode == 1
    assert "Triton exited by itself, killed by SIGKILL. Its log, " in messages
    assert "Started Metrics Service" in messages
    assert "Traceback" not in messages


def test_output_names_addresses_models_and_purpose(serve: Serve, repository: Path, tmp_path: Path) -> None:
    write_model(repository, "unwanted", "raise RuntimeError('this model must not be loaded')")
    log = tmp_path / "triton.log"
    options = ("--repository", repository, "--log", log, "--model", "summing", *FREE_PORTS, "--detach")
    done = serve(*options)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert facts["models"] == "summing"
    assert facts["log"] == str(log)
    assert request_sum(facts["gRPC"], "summing", 5) == 5
    assert "for development" in done.stderr
    assert "26.11" in done.stderr
    assert "Other machines" not in done.stderr


def test_binding_to_all_addresses_prints_a_warning(serve: Serve, repository: Path) -> None:
    done = serve("--repository", repository, "--host", "0.0.0.0", *FREE_PORTS, "--detach", "--json")
    assert "Other machines can use this server" in done.stderr
    assert json.loads(done.stdout)["address"].startswith("127.0.0.1:")


def test_detached_server_runs_until_stopped(
    serve: Serve, repository: Path, tmp_path: Path, list_temporary: Callable[[], list[str]]
) -> None:
    ports = claim_ports("127.0.0.1", dict.fromkeys(("grpc", "http", "metrics")))
    options = [part for protocol, port in ports.items() for part in (f"--{protocol}-port", port)]
    options.append("--no-recognize-sign")
    ready = json.loads(serve("--repository", repository, *options, "--detach", "--json").stdout)
    tree = ProcessTree.find(ready["pid"])
    tree.assert_complete()
    assert ready["address"] == f"127.0.0.1:{ports['grpc']}"
    assert ready["http_address"] == f"127.0.0.1:{ports['http']}"
    assert ready["metrics_address"] == f"127.0.0.1:{ports['metrics']}"
    assert ready["log"] == str(tmp_path / "state" / "asl-triton" / f"triton-{ports['grpc']}.log")
    assert ready["models"] == ["summing"]
    assert request_sum(ready["address"], "summing", 6) == 6

    second = serve("--repository", repository, *FREE_PORTS, "--detach")
    assert second.returncode == 1
    assert f"is already running at {ready['address']}" in " ".join(second.stderr.split())

    assert serve("--stop").stdout == f"Stopped the Triton at {ready['address']}.\n"
    tree.assert_gone()
    assert list_temporary() == []
    assert serve("--stop").stdout == "No detached Triton is running.\n"
    assert json.loads(serve("--stop", "--json").stdout) == {"stopped": False}


def test_process_with_a_dead_servers_pid_is_left_alone(serve: Serve, repository: Path, tmp_path: Path) -> None:
    assert serve("--repository", repository, *FREE_PORTS, "--detach").returncode == 0
    (state,) = (tmp_path / "state" / "asl-triton").glob("*.json")
    saved = json.loads(state.read_text())
    serve("--stop")
    assert not state.exists()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        state.write_text(json.dumps({**saved, "pid": bystander.pid}))
        assert serve("--stop").stdout == "No detached Triton is running.\n"
        assert bystander.poll() is None
        bystander.communicate(b"\n")
    assert bystander.returncode == 0


@pytest.mark.parametrize("options", [(), ("--detach",)], ids=["foreground", "detached"])
def test_failing_model_is_reported_and_leaves_nothing_behind(
    serve: Serve, repository: Path, tmp_path: Path, list_temporary: Callable[[], list[str]], options: tuple[str, ...]
) -> None:
    write_model(repository, "broken", "raise RuntimeError('weights are cut off')")
    done = serve("--repository", repository, *FREE_PORTS, "--log", tmp_path / "triton.log", *options)
    assert done.returncode == 1
    assert done.stdout == ""
    message = " ".join(done.stderr.split())
    assert "Triton could not load 1 of 2 models: broken: RuntimeError: weights are cut off" in message
    assert "Traceback" not in message
    assert list_temporary() == []
    assert serve("--stop").stdout == "No detached Triton is running.\n"


def test_missing_repository_is_reported(serve: Serve, tmp_path: Path) -> None:
    done = serve("--repository", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "nowhere does not exist: give --repository" in " ".join(done.stderr.split())
