"""A real Prometheus with our rules, over a real Triton that is asked and a doctor that looks: every panel has data."""

import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import yaml
from tritonclient.utils import InferenceServerException

from asl_triton.presets import PRESETS
from asl_triton_export.checkpoint import load_checkpoint
from tests.deploy.production import API_KEY, HOST, ProductionTriton
from tests.deploy.programs import program
from tests.deploy.test_monitoring import ALERTS, DASHBOARD, MONITORING, all_rules, panels
from tests.exports import export_shared
from tests.networks import GLOSSES, save_checkpoint

T = TypeVar("T")
# A machine without a GPU has none of these; NVIDIA's documentation of Triton's metrics has all of them.
GPU_METRICS = {
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_limit",
    "nv_gpu_power_usage",
    "nv_gpu_utilization",
}
METRIC = re.compile(r"\b(?:nv_|asl_triton)[a-z_0-9]+(?::[a-z_0-9]+)*")


@dataclass(frozen=True)
class Prometheus:
    """One that runs, asked over its API."""

    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def numbers(self, query: str) -> list[float]:
        """The values of a query now, without those that are no number."""
        found = self.ask("query", query=query)["result"]
        return [value for row in found if not math.isnan(value := float(row["value"][1]))]

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {a["labels"]["alertname"] for a in self.ask("alerts")["alerts"] if a["state"] == "firing"}


def free_address() -> str:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return f"{HOST}:{free.getsockname()[1]}"


def until(found: Callable[[], T], what: str, patience_s: float = 60) -> T:
    """The first answer that is none of nothing."""
    deadline = time.monotonic() + patience_s
    while not (answer := found()):
        assert time.monotonic() < deadline, f"there is still no {what}"
        time.sleep(0.2)
    return answer


@contextmanager
def process(*command: object, log: Path) -> Iterator[None]:
    """Run a program for the block, and stop it with SIGTERM."""
    with log.open("wb") as output:
        running = subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            running.terminate()
            running.wait(30)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProductionTriton]:
    folder = tmp_path_factory.mktemp("monitored")
    checkpoint = load_checkpoint(save_checkpoint(folder / "small.pt"))
    export_shared(tmp_path_factory, checkpoint, GLOSSES, PRESETS["wlasl"], folder / "models", "signs")
    with ProductionTriton(folder / "models") as running:
        yield running


@pytest.fixture(scope="module")
def asked(triton: ProductionTriton) -> Iterator[None]:
    """Requests, one behind the other, for as long as the tests last or Triton does."""
    stop = threading.Event()

    def ask() -> None:
        frames = grpc_client.InferInput("FRAMES__0", [1, 9, 224, 224, 3], "UINT8")
        frames.set_data_from_numpy(np.zeros((1, 9, 224, 224, 3), np.uint8))
        with grpc_client.InferenceServerClient(triton.address) as client, suppress(InferenceServerException):
            while not stop.wait(0.1):
                client.infer("signs", [frames])

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture(scope="module")
def doctor(triton: ProductionTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`asl-triton doctor --metrics`, and where its metrics are."""
    address = free_address()
    command = [sys.executable, "-m", "asl_triton", "doctor", "--server", triton.address, "--api-key", API_KEY]
    options = ["--repository", triton.repository, "--metrics", address, "--every", 2]
    with process(*command, *options, log=tmp_path_factory.mktemp("doctor") / "log"):
        yield address


@pytest.fixture(scope="module")
def prometheus(
    triton: ProductionTriton, asked: None, doctor: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Our configuration and rules, in which minutes are seconds and the servers are these."""
    folder, address = tmp_path_factory.mktemp("prometheus"), free_address()
    (folder / "rules").mkdir()
    for path in (MONITORING / "rules").glob("*.yml"):
        text = re.sub(r"for: \d+m", "for: 1s", path.read_text(encoding="utf-8"))
        (folder / "rules" / path.name).write_text(text, encoding="utf-8")
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job, target in zip(config["scrape_configs"], (triton.metrics_address, doctor), strict=True):
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    binary = program("prometheus", "apt-get install prometheus")
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with process(binary, *options, f"--web.listen-address={address}", log=folder / "log"):
        server = Prometheus(address)

        def has_data() -> bool:
            try:
                return bool(server.numbers("asl_triton:batch_size:rate5m") and server.numbers("asl_triton_doctor_well"))
            except (urllib.error.URLError, OSError):
                return False

        until(has_data, "data in Prometheus")
        yield server


def queries() -> list[tuple[str, str]]:
    """Each panel's, with what Grafana puts into it."""
    filled = []
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"].replace("$model", ".*").replace("$__rate_interval", "1m")
            assert "$" not in query, query
            filled.append((f"{panel['title']} {target['refId']}", query))
    return filled


def test_every_metric_of_rules_and_dashboard_is_there(prometheus: Prometheus) -> None:
    written = [rule["expr"] for rule in all_rules()] + [query for _, query in queries()]
    used = {name for expression in written for name in METRIC.findall(expression)}
    known = set(prometheus.ask("label/__name__/values"))
    assert {name for name in used if name.startswith("nv_")} >= GPU_METRICS
    assert used - known == GPU_METRICS


@pytest.mark.parametrize(("panel", "query"), queries(), ids=[panel for panel, _ in queries()])
def test_panel_has_data(prometheus: Prometheus, panel: str, query: str) -> None:
    if any(name in GPU_METRICS for name in METRIC.findall(query)):
        prometheus.ask("query", query=query)  # it is understood, at least
    else:
        assert until(lambda: prometheus.numbers(query), f"data for {panel}")


def test_every_recording_rule_gives_a_number(prometheus: Prometheus) -> None:
    for rule in all_rules():
        if "record" in rule:
            assert until(lambda: prometheus.numbers(rule["record"]), rule["record"])  # noqa: B023
    groups = prometheus.ask("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


def test_annotations_and_variables_are_understood(prometheus: Prometheus) -> None:
    (alerts,) = DASHBOARD["annotations"]["list"]
    prometheus.ask("query", query=alerts["expr"])
    model = DASHBOARD["templating"]["list"][1]["definition"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", model).groups()  # type: ignore[union-attr]
    assert prometheus.ask(f"label/{label}/values", **{"match[]": metric}) == ["signs"]


def test_alert_fires_when_triton_is_gone(prometheus: Prometheus, triton: ProductionTriton) -> None:
    assert prometheus.firing() <= {"AslTritonLatencyBurnsFast", "AslTritonLatencyBurnsSlowly"}  # this machine is slow
    triton.stop()
    until(lambda: {"AslTritonNoInstanceReady", "AslTritonKnownAnswerWrong"} <= prometheus.firing(), "alert")
    assert set(ALERTS) >= prometheus.firing()
