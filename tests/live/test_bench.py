"""`bench` against a real Triton: its figures, its files, and common mistakes."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.ports import claim_ports
from tests.command_line import CommandResult, asl_triton

Capture = pytest.CaptureFixture[str]
QUICK = ("--seconds", "0.2", "--warm-up", "0.1", "--max-windows", "3")
CROP_BYTES = 224 * 224 * 3


def run_bench(capsys: Capture, triton: LocalTriton, output: Path, *more: object) -> CommandResult:
    """Run a short `asl-triton bench` on a server."""
    return asl_triton(capsys, "bench", "--server", triton.address, "--output", output, *QUICK, *more)


def read_document(output: Path) -> dict[str, Any]:
    """Read `bench.json`."""
    content: dict[str, Any] = json.loads((output / "bench.json").read_text())
    return content


def test_figures_agree_with_the_servers_own(small_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    done = run_bench(capsys, small_triton, tmp_path, "--concurrency", "8,1,8", "--frames", 9)
    assert done.code == 0, done.output
    for words in ("small on", "clips/s p50 p90 p95 p99 queue compute batch", "1 in flight", "8 in flight", "knee"):
        assert words in done.output
    found = read_document(tmp_path)
    assert [(level["loop"], level["in_flight"]) for level in found["levels"]] == [("closed", 1), ("closed", 8)]
    for level in found["levels"]:
        latency_s, server = level["latency_s"], level["server"]
        assert 0 < latency_s["p50"] <= latency_s["p90"] <= latency_s["p95"] <= latency_s["p99"] <= latency_s["max"]
        assert level["throughput"] == pytest.approx(level["answered"] / level["seconds"])
        assert server["requests"] == pytest.approx(level["answered"], abs=2 * level["in_flight"])
        assert 0 < server["compute_s"] < latency_s["mean"]
        assert 0 <= server["queue_s"] < latency_s["mean"]
        assert level["sent_bytes"] == 9 * CROP_BYTES
        assert (level["failed"], level["windows"]) == (0, 3)
    alone, together = found["levels"]
    assert alone["server"]["batch_size"] == 1
    assert together["server"]["batch_size"] > 1
    assert (found["model"]["name"], found["model"]["input"]) == ("small", "uint8")
    assert (found["asked"], found["stopped"]) == ("9 random frames per clip, as uint8", None)
    page = (tmp_path / "bench.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("<svg") == 2


def test_open_loop_runs_at_the_given_rate(small_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    rate = ["--rate", "30.5", "--arrivals", "poisson", "--in-flight", 16]
    done = run_bench(capsys, small_triton, tmp_path, *rate, "--frames", 9, "--json")
    assert done.code in (0, 3), done.output  # a slow machine does not start some requests
    found = read_document(tmp_path)
    assert json.loads(done.out) == found
    (level,) = found["levels"]
    assert (level["loop"], level["rate"], level["arrivals"], level["in_flight"]) == ("open", 30.5, "poisson", 16)
    assert found["knee"] is None


def test_requests_beyond_the_in_flight_limit_are_not_started(
    small_triton: LocalTriton, tmp_path: Path, capsys: Capture
) -> None:
    done = run_bench(capsys, small_triton, tmp_path, "--rate", "2000", "--in-flight", 2, "--frames", 9)
    assert done.code == 3, done.output
    (level,) = read_document(tmp_path)["levels"]
    assert level["not_started"] > 0
    assert "not started" in done.output


def test_clips_are_decoded_and_broken_ones_counted(
    small_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    (clips / "deeper" / "d.mp4").write_text("this is no video")
    done = run_bench(capsys, small_triton, tmp_path, "--clips", clips, "--concurrency", 2, "--seconds", 2)
    assert done.code == 3, done.output
    found = read_document(tmp_path)
    (level,) = found["levels"]
    assert found["asked"] == "4 clips, decoded and cropped here"
    assert 20 * CROP_BYTES <= level["sent_bytes"] <= 34 * CROP_BYTES
    assert sum(found["errors"].values()) == level["failed"] > 0
    assert [error.startswith("deeper/d.mp4 cannot be read as a video") for error in found["errors"]] == [True]
    assert f"failed {level['failed']}: deeper/d.mp4 cannot be read" in done.output


def test_only_broken_clips_is_an_error(small_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    done = run_bench(capsys, small_triton, tmp_path / "out", "--clips", tmp_path / "clips", "--concurrency", 1)
    assert done.code == 1
    assert "no clip was answered with 1 in flight: a.mp4 is empty" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--concurrency", "one"], "list of positive numbers"),
        (["--concurrency", "1,,2"], "list of positive numbers"),
        (["--concurrency", "0"], "list of positive numbers"),
        (["--concurrency", "1.5"], "whole numbers up to 256"),
        (["--concurrency", "257"], "whole numbers up to 256"),
        (["--rate", "nan"], "list of positive numbers"),
        (["--rate", "-1"], "list of positive numbers"),
        (["--stable", "much"], "is not a percentage"),
        (["--stable", "0%"], "is not a percentage"),
        (["--frames", "64", "--clips", "."], "only one of these options"),
        (["--seconds", "0"], "--seconds"),
        (["--arrivals", "bursts"], "--arrivals"),
    ],
)
def test_invalid_options_are_usage_errors(options: list[str], error: str, capsys: Capture) -> None:
    done = asl_triton(capsys, "bench", *options)
    assert done.code == 2
    assert error in " ".join(done.output.replace("│", " ").split())


def test_unusable_servers_and_inputs_are_errors(small_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    away = f"127.0.0.1:{claim_ports('127.0.0.1', {'gRPC': None})['gRPC']}"
    for options, error in (
        (["--server", away], "no server answers"),
        (["--server", small_triton.address, "--model", "other"], "serves no model 'other'"),
        (["--server", small_triton.address, "--frames", 8], "small accepts 9 to 300 frames per request, not 8"),
        (["--server", small_triton.address, "--clips", tmp_path / "nowhere"], "there is no folder"),
    ):
        done = asl_triton(capsys, "bench", "--output", tmp_path / "out", *options)
        assert (done.code, error in done.output) == (1, True), done.output
    assert not (tmp_path / "out").exists()


def count_answered_requests(triton: LocalTriton) -> int:
    """Count the requests that the model has answered."""
    with urllib.request.urlopen(f"http://{triton.http_address}/v2/models/small/stats", timeout=60) as answer:
        return int(json.load(answer)["model_stats"][0]["inference_stats"]["success"]["count"])


def test_interrupted_run_reports_partial_results(small_triton: LocalTriton, tmp_path: Path) -> None:
    before = count_answered_requests(small_triton)
    command = [sys.executable, "-m", "asl_triton", "bench", "--server", small_triton.address, "--frames", "9"]
    command += ["--seconds", "0.1", "--warm-up", "0", "--stable", "0.0001%", "--max-windows", "100000"]
    command += ["--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        while running.poll() is None and count_answered_requests(small_triton) < before + 30:
            time.sleep(0.05)
        time.sleep(0.5)  # by now a window has ended
        running.send_signal(signal.SIGINT)
        printed = running.communicate(timeout=60)[0]
    assert running.returncode == 3, printed
    assert "stopped before the end: interrupted" in " ".join(printed.split())
    found = read_document(tmp_path)
    assert found["stopped"] == "interrupted"
    assert [level["in_flight"] for level in found["levels"]] == [1]
    assert not found["levels"][0]["stable"]
