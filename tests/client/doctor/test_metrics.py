"""The metrics that `asl-triton doctor --metrics` serves to Prometheus."""

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from asl_triton.doctor.checks import Check
from asl_triton.doctor.metrics import Examinations, serve_metrics
from asl_triton.errors import AslTritonError
from tests.client.grpc_server import Triton, serving
from tests.command_line import asl_triton

Samples = dict[tuple[str, ...], float]


def read_metrics(address: str) -> Samples:
    """Read the samples, keyed by name and label values, with labels sorted by name."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }


@contextmanager
def serve(examinations: Examinations) -> Iterator[str]:
    server = serve_metrics(examinations, "127.0.0.1:0")
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_only_the_last_examination_is_reported() -> None:
    examinations = Examinations()
    with serve(examinations) as address:
        assert read_metrics(address) == {}
        examinations.record([Check("server", "ok", ""), Check("signs: golden answer", "failed", "", "")], 1.5)
        samples = read_metrics(address)
        assert samples[("asl_triton_doctor_well",)] == 0
        assert samples[("asl_triton_doctor_check", "server", "", "ok")] == 1
        assert samples[("asl_triton_doctor_check", "golden answer", "signs", "failed")] == 1
        assert samples[("asl_triton_doctor_examination_seconds",)] == 1.5
        examinations.record([Check("server", "warning", "", "")], 0.5)
        again = read_metrics(address)
    assert again[("asl_triton_doctor_well",)] == 1
    assert [key[1:] for key in again if key[0] == "asl_triton_doctor_check"] == [("server", "", "warning")]
    when = ("asl_triton_doctor_examined_timestamp_seconds",)
    assert again[when] >= samples[when]


@pytest.mark.parametrize("address", ["9109", "localhost", "127.0.0.1:x", "127.0.0.1:99999", "no-such-host.invalid:1"])
def test_invalid_address_is_a_clear_error(capsys: pytest.CaptureFixture[str], address: str) -> None:
    done = asl_triton(capsys, "doctor", "--metrics", address)
    assert done.code == 1
    assert "serve metrics at" in done.output


def test_address_in_use_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AslTritonError, match=r"cannot serve metrics at .*Choose another address with --metrics"):
            serve_metrics(Examinations(), f"127.0.0.1:{taken.getsockname()[1]}")


def test_doctor_repeats_its_checks_until_stopped(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with serving(Triton()) as triton:
        command = [sys.executable, "-m", "asl_triton", "doctor", "--server", triton.address, "--metrics", address]
        doctor = subprocess.Popen(
            [*command, "--every", "0.1", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        try:
            assert doctor.stdout is not None
            assert '"well": true' in doctor.stdout.readline()
            assert '"well": true' in doctor.stdout.readline()
            assert read_metrics(address)[("asl_triton_doctor_well",)] == 1
            triton.ready = False
            while '"well": true' in doctor.stdout.readline():
                pass
            doctor.stdout.readline()  # wait for the next line: the failure is recorded by then
            samples = read_metrics(address)
            assert samples[("asl_triton_doctor_well",)] == 0
            assert samples[("asl_triton_doctor_check", "server", "", "failed")] == 1
            doctor.send_signal(signal.SIGTERM)
            assert doctor.wait(30) == 0
        finally:
            doctor.kill()
            doctor.communicate()
    with pytest.raises(urllib.error.URLError):
        read_metrics(address)
