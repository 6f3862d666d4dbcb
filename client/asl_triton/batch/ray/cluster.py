"""The Ray cluster to join, or one that is started on this machine for one run. Ray itself prints nothing."""

import contextlib
import io
import logging
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import ray

from asl_triton.errors import AslTritonError

OBJECT_STORE_BYTES = 512 * 2**20  # for a Ray started here: only lists of clips and outcomes go through it
CONNECT_TIMEOUT_S = 5.0
TEMPORARY = "/tmp" if os.name == "posix" else None  # Ray puts sockets in it, whose paths are limited to 107 characters


@dataclass(frozen=True)
class Cluster:
    """Where the work is done. `address` is "auto" for the Ray that runs on this machine, or `host:port` of a cluster
    that this machine belongs to. Without it, Ray is started here. `workers` is the number of actors, by default one per
    CPU."""

    address: str | None = None
    workers: int | None = None

    @contextlib.contextmanager
    def join(self) -> Iterator[None]:
        """Connect this process to Ray until the block ends. An existing connection is used and stays open.

        Raises:
            AslTritonError: Ray does not answer, has a different version, or does not start.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # where Ray reports dead processes
            if ray.is_initialized():
                yield
                return
            with self._connect():
                yield

    @contextlib.contextmanager
    def _connect(self) -> Iterator[None]:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        with tempfile.TemporaryDirectory(prefix="asl-ray-", dir=TEMPORARY, ignore_cleanup_errors=True) as folder:
            if self.address is None:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                options |= {
                    "address": "local",
                    "include_dashboard": False,
                    "num_cpus": count_usable_cpus(),
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "_temp_dir": folder,
                }
            else:
                check_address(self.address)
                options["address"] = self.address
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(**options)
            except (Exception, SystemExit) as exc:  # Ray exits if something else listens there
                ray.shutdown()
                raise AslTritonError(self._explain_refusal(exc)) from exc
            finally:
                with contextlib.suppress(ValueError):  # not the main thread
                    signal.signal(signal.SIGTERM, handler)  # Ray installs its own, which ends the process
            try:
                yield
            finally:
                ray.shutdown()

    def _explain_refusal(self, exc: BaseException) -> str:
        reason = " ".join(str(exc).split()) if isinstance(exc, Exception) else "the server there is not Ray"
        if self.address is None:
            return f"cannot start Ray on this machine: {reason}"
        if self.address == "auto" and isinstance(exc, ConnectionError):
            return (
                "Ray is not running on this machine: start it (ray start), run this on a machine of the cluster, or "
                "remove --ray-address to start Ray just for this command"
            )
        return (
            f"cannot join the Ray cluster at {self.address}: {reason}. This machine must belong to it, with the same "
            "versions of Ray and Python. If it requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        )


def check_address(address: str) -> None:
    """Reject addresses that are invalid or have no gRPC server, because Ray itself would try for minutes.

    Raises:
        AslTritonError: the address is one of these.
    """
    if address == "auto":
        return
    if "://" in address:
        raise AslTritonError(
            f"{address}: Ray Client is not supported. Run this command on a machine of the cluster with --ray-address "
            "auto, or submit it as a job: ray job submit -- asl-triton batch ... --ray-address auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise AslTritonError(f"{address!r} is not a Ray cluster address: use auto or host:port (--ray-address)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise AslTritonError(f"no Ray cluster answers at {address} ({reason}): check --ray-address") from exc
    if "RAY_USE_TLS" not in os.environ:
        with grpc.insecure_channel(address) as channel:
            try:
                grpc.channel_ready_future(channel).result(CONNECT_TIMEOUT_S)
            except grpc.FutureTimeoutError as exc:
                raise AslTritonError(f"the server at {address} is not Ray: check --ray-address") from exc


def count_usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def count_cpus() -> int:
    """Return the number of CPUs of the cluster that this process has joined; at least 1."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def explain(exc: Exception) -> AslTritonError:
    """Return the error that an actor raised, or why Ray gave up. The last line of Ray's long report has the cause."""
    cause = getattr(exc, "cause", exc)
    if isinstance(cause, AslTritonError):
        return cause
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(exc).__name__
    if missing := re.search(r"No module named '([\w.]+)'", str(exc)):
        reason = (
            f"a machine of the cluster lacks the Python module {missing[1]!r}: install this version of "
            "'asl-triton[ray]' on all of them, in their image or in a runtime environment"
        )
    return AslTritonError(f"Ray gave up: {reason}")
