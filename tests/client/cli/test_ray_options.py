"""`asl-triton batch --engine ray`: conflicting options and missing parts are reported before anything starts."""

import socket
import sys
from pathlib import Path

import pytest

from asl_triton.batch.ray.cluster import Cluster
from asl_triton.errors import AslTritonError
from asl_triton.extras import format_install_command
from tests.command_line import asl_triton

RAY = ("--engine", "ray")


@pytest.mark.parametrize(("options", "message"), [
    (("--ray-address", "auto"), "it requires --engine ray"),
    (("--ray-workers", 2), "it requires --engine ray"),
    (("--output", "s3://bucket/glosses"), "s3://bucket/glosses is not a folder on this machine: add --engine ray"),
    ((*RAY, "--timeline"), "timelines do not run on Ray"),
    ((*RAY, "--hash"), "detected by size and time"),
    ((*RAY, "--ray-address", "auto", "--local"), "cannot reach a Triton on this machine"),
    (("--engine", "spark"), "is not one of"),
])  # fmt: skip
def test_conflicting_options_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    done = asl_triton(capsys, "batch", tmp_path, *options)
    assert done.code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_local_engine_refuses_a_bucket_address(capsys: pytest.CaptureFixture[str]) -> None:
    done = asl_triton(capsys, "batch", "s3://bucket/clips")
    assert done.code == 2 and "add --engine ray" in done.output


def test_missing_ray_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("cluster", "runner"):
        monkeypatch.delitem(sys.modules, f"asl_triton.batch.ray.{name}", raising=False)
    done = asl_triton(capsys, "batch", tmp_path, *RAY)
    assert done.code == 1 and format_install_command("ray") in done.output


@pytest.mark.parametrize(("folder", "message"), [
    ("nowhere", "there is no folder"), (".", "there is no video"), ("gs://bucket/clips", "pip install gcsfs"),
    ("ftps://x/y", "fsspec does not know"), ("memory://clips", "memory of one process"),
    ("http://localhost:9/clips", "on a web server"),
])  # fmt: skip
def test_folder_without_clips_is_a_clear_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    done = asl_triton(capsys, "batch", folder, *RAY)
    assert done.code == 1 and message in done.output


@pytest.mark.parametrize(("address", "message"), [
    ("ray://head:10001", r"Ray Client is not supported.* ray job submit"),
    ("http://head:8265", "Ray Client is not supported"),
    ("head", "is not a Ray cluster address: use auto or host:port"),
    ("head:port", "is not a Ray cluster address"),
    ("nohost.invalid:6379", "no Ray cluster answers at nohost.invalid:6379"),
    ("127.0.0.1:99999", "no Ray cluster answers at 127.0.0.1:99999"),
])  # fmt: skip
def test_unusable_cluster_address_is_reported_at_once(address: str, message: str) -> None:
    with pytest.raises(AslTritonError, match=message), Cluster(address).join():
        raise AssertionError


def test_closed_port_is_reported_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        message = rf"no Ray cluster answers at {address} \(Connection refused\)"
        with pytest.raises(AslTritonError, match=message), Cluster(address).join():
            raise AssertionError


def test_server_other_than_ray_is_reported_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(AslTritonError, match=f"the server at {address} is not Ray"), Cluster(address).join():
            raise AssertionError
