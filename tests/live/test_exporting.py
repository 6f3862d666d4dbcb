"""A plain `tritonserver`, started while `asl-triton export` runs or after it was killed."""

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from asl_triton.presets import PRESETS
from asl_triton_deploy.ports import claim_ports
from asl_triton_deploy.readiness import check_answers, is_ready
from asl_triton_deploy.triton_binary import Machine, find_binary
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.networks import GLOSSES, save_checkpoint, save_labels

HOST = "127.0.0.1"
DEADLINE_S = 120.0


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Build a folder with a small checkpoint, its labels, and a repository with the model `served`."""
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "small.pt"))
    save_labels(tmp_path / "labels.txt")
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path / "models", "served")
    return tmp_path


def start_export(work: Path, name: str) -> psutil.Popen:
    """Start `asl-triton export` as a process."""
    arguments = ["small.pt", "--labels", "labels.txt", "--name", name, "--repository", "models"]
    return psutil.Popen([sys.executable, "-m", "asl_triton", "export", *arguments], cwd=work, stdout=subprocess.DEVNULL)


@contextmanager
def suspend_export(work: Path, name: str) -> Iterator[psutil.Popen]:
    """Start an export and suspend it when only the network has been written."""
    process = start_export(work, name)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not list(work.glob(f".asl-triton-*/{name}/1/model.pt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.suspend()
        assert not list(work.glob(f".asl-triton-*/{name}/config.pbtxt"))
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def run_tritonserver(repository: Path, folder: Path) -> Iterator[int]:
    """Run the wheel's Triton with only the necessary flags; yield its HTTP port once it is ready."""
    binary = find_binary(Machine.here(), repository)
    ports = claim_ports(HOST, dict.fromkeys(("http", "grpc", "metrics")))
    flags = [f"--{name}-{what}" for name, port in ports.items() for what in (f"port={port}", f"address={HOST}")]
    flags.append(f"--backend-config=python,shm-region-prefix-name=exporting-{secrets.token_hex(8)}-")
    command = [binary.path, *binary.options(folder / "backends"), f"--model-repository={repository}", *flags]
    log = folder / "triton.log"
    with log.open("wb") as out:
        process = psutil.Popen(command, env=dict(binary.environment), stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not is_ready(HOST, ports["http"]):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        yield ports["http"]
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def list_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_triton_starts_while_a_model_is_exported(work: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with suspend_export(work, "coming") as export:
        with run_tritonserver(work / "models", tmp_path_factory.mktemp("triton")) as http:
            check_answers(HOST, http, "served")
        export.resume()
        assert export.wait(DEADLINE_S) == 0
    assert list_folders(work / "models") == ["coming", "served"]
    assert list_folders(work) == ["models"]


def test_triton_starts_after_a_killed_export_and_the_next_export_cleans_up(
    work: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with suspend_export(work, "killed") as export:
        export.kill()
        export.wait()
    assert len(list_folders(work)) == 2
    with run_tritonserver(work / "models", tmp_path_factory.mktemp("triton")) as http:
        check_answers(HOST, http, "served")
    assert start_export(work, "next").wait(DEADLINE_S) == 0
    assert (list_folders(work), list_folders(work / "models")) == (["models"], ["next", "served"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_export_leaves_nothing(work: Path, number: signal.Signals) -> None:
    with suspend_export(work, "stopped") as export:
        export.send_signal(number)
        export.resume()
        assert export.wait(DEADLINE_S) != 0
    assert (list_folders(work), list_folders(work / "models")) == (["models"], ["served"])
