"""Serves the doctor's latest results to Prometheus."""

import time
from collections.abc import Iterable, Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from asl_triton.doctor.checks import Check
from asl_triton.errors import AslTritonError


class Examinations(Collector):
    """The latest examination as metrics. There are none until the first has ended.

    `asl_triton_doctor_well` is 1 if no check failed. `asl_triton_doctor_check` is 1 for each check's state, by `model`
    (empty for checks without one), `check` and `state` (ok, warning, failed).
    """

    def __init__(self) -> None:
        self._metrics: tuple[Metric, ...] = ()

    def record(self, checks: Iterable[Check], seconds: float) -> None:
        """Replace the previous results."""
        checks = list(checks)
        states = GaugeMetricFamily(
            "asl_triton_doctor_check", "1 for the state that a check found.", labels=["model", "check", "state"]
        )
        for check in checks:
            model, _, name = check.name.rpartition(": ")
            states.add_metric([model, name, check.state], 1)
        well = all(check.state != "failed" for check in checks)
        self._metrics = (
            GaugeMetricFamily("asl_triton_doctor_well", "1 if no check of the last examination failed.", well),
            states,
            GaugeMetricFamily("asl_triton_doctor_examination_seconds", "How long the last examination took.", seconds),
            GaugeMetricFamily(
                "asl_triton_doctor_examined_timestamp_seconds", "When the last examination ended.", time.time()
            ),
        )

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for Prometheus."""
        yield from self._metrics


def serve_metrics(examinations: Examinations, address: str) -> WSGIServer:
    """Serve the metrics at `http://ADDRESS/metrics`, in a thread, until the server is shut down.

    Raises:
        AslTritonError: the address is invalid or in use.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise AslTritonError(
            f"{address!r} is not an address to serve metrics at: use host:port, such as 127.0.0.1:9109"
        )
    registry = CollectorRegistry()
    registry.register(examinations)
    try:
        server, _thread = start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, OverflowError) as exc:
        raise AslTritonError(
            f"cannot serve metrics at {address}: {exc}. Choose another address with --metrics"
        ) from exc
    return server
