"""A real Prometheus with our rules, scraping a busy Triton and a doctor: every panel has data."""

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
from tests.deploy.test_monitoring import ALERTS, DASHBOARD, MONITORING, list_panels, load_rules
from tests.exports import export_shared
from tests.networks import GLOSSES, save_checkpoint

T = TypeVar("T")
# Triton has these only on a machine with a GPU. NVIDIA's documentation of its metrics lists them all.
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
    """A running Prometheus, queried over its API."""

    address: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a response."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query_values(self, query: str) -> list[float]:
        """Return the current values of a query, without NaN."""
        found = self.get("query", query=query)["result"]
        return [value for row in found if not math.isnan(value := float(row["value"][1]))]

    def list_firing(self) -> set[str]:
        """Return the names of the firing alerts."""
        return {a["labels"]["alertname"] for a in self.get("alerts")["alerts"] if a["state"] == "firing"}


def find_free_address() -> str:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return f"{HOST}:{free.getsockname()[1]}"


def wait_until(get: Callable[[], T], what: str, timeout_s: float = 60) -> T:
    """Call `get` until it returns something truthy, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (answer := get()):
        assert time.monotonic() < deadline, f"there is still no {what}"
        time.sleep(0.2)
    return answer


@contextmanager
def run_process(*command: object, log: Path) -> Iterator[None]:
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
def traffic(triton: ProductionTriton) -> Iterator[None]:
    """Send one request after another until the tests end or Triton stops."""
    stop = threading.Event()

    def send_requests() -> None:
        frames = grpc_client.InferInput("FRAMES__0", [1, 9, 224, 224, 3], "UINT8")
        frames.set_data_from_numpy(np.zeros((1, 9, 224, 224, 3), np.uint8))
        with grpc_client.InferenceServerClient(triton.address) as client, suppress(InferenceServerException):
            while not stop.wait(0.1):
                client.infer("signs", [frames])

    thread = threading.Thread(target=send_requests)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture(scope="module")
def doctor(triton: ProductionTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `asl-triton doctor --metrics`, and yield the address of its metrics."""
    address = find_free_address()
    command = [sys.executable, "-m", "asl_triton", "doctor", "--server", triton.address, "--api-key", API_KEY]
    options = ["--repository", triton.repository, "--metrics", address, "--every", 2]
    with run_process(*command, *options, log=tmp_path_factory.mktemp("doctor") / "log"):
        yield address


@pytest.fixture(scope="module")
def prometheus(
    triton: ProductionTriton, traffic: None, doctor: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Run Prometheus with our configuration and rules, shortened from minutes to seconds, on these servers."""
    folder, address = tmp_path_factory.mktemp("prometheus"), find_free_address()
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
    with run_process(binary, *options, f"--web.listen-address={address}", log=folder / "log"):
        server = Prometheus(address)

        def has_data() -> bool:
            try:
                return bool(
                    server.query_values("asl_triton:batch_size:rate5m")
                    and server.query_values("asl_triton_doctor_well")
                )
            except (urllib.error.URLError, OSError):
                return False

        wait_until(has_data, "data in Prometheus")
        yield server


def list_queries() -> list[tuple[str, str]]:
    """Return the queries of each panel, with the variables of Grafana filled in."""
    filled = []
    for panel in list_panels():
        for target in panel["targets"]:
            query = target["expr"].replace("$model", ".*").replace("$__rate_interval", "1m")
            assert "$" not in query, query
            filled.append((f"{panel['title']} {target['refId']}", query))
    return filled


def test_every_metric_of_rules_and_dashboard_exists(prometheus: Prometheus) -> None:
    written = [rule["expr"] for rule in load_rules()] + [query for _, query in list_queries()]
    used = {name for expression in written for name in METRIC.findall(expression)}
    known = set(prometheus.get("label/__name__/values"))
    assert {name for name in used if name.startswith("nv_")} >= GPU_METRICS
    assert used - known == GPU_METRICS


@pytest.mark.parametrize(("panel", "query"), list_queries(), ids=[panel for panel, _ in list_queries()])
def test_panel_has_data(prometheus: Prometheus, panel: str, query: str) -> None:
    if any(name in GPU_METRICS for name in METRIC.findall(query)):
        prometheus.get("query", query=query)  # at least the syntax is valid
    else:
        assert wait_until(lambda: prometheus.query_values(query), f"data for {panel}")


def test_every_recording_rule_has_a_value(prometheus: Prometheus) -> None:
    for rule in load_rules():
        if "record" in rule:
            assert wait_until(lambda: prometheus.query_values(rule["record"]), rule["record"])  # noqa: B023
    groups = prometheus.get("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


def test_annotations_and_variables_are_valid(prometheus: Prometheus) -> None:
    (alerts,) = DASHBOARD["annotations"]["list"]
    prometheus.get("query", query=alerts["expr"])
    model = DASHBOARD["templating"]["list"][1]["definition"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", model).groups()  # type: ignore[union-attr]
    assert prometheus.get(f"label/{label}/values", **{"match[]": metric}) == ["signs"]


def test_alert_fires_when_triton_is_gone(prometheus: Prometheus, triton: ProductionTriton) -> None:
    assert prometheus.list_firing() <= {"AslTritonLatencyBurnsFast", "AslTritonLatencyBurnsSlowly"}  # on a slow machine
    triton.stop()
    wait_until(lambda: {"AslTritonNoInstanceReady", "AslTritonKnownAnswerWrong"} <= prometheus.list_firing(), "alert")
    assert set(ALERTS) >= prometheus.list_firing()
