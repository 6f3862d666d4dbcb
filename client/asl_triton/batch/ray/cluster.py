"""Ray: joined where it runs already, or started on this machine for as long as it is needed; it says nothing itself."""

import contextlib
import importlib.util
import io
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asl_triton.errors import AslTritonError

OBJECT_STORE_BYTES = 512 * 2**20  # of our own Ray: lists of clips and their outcomes go through it, videos do not
CONNECT_TIMEOUT_S = 5.0
SHORT = "/tmp" if os.name == "posix" else None  # Ray's sockets are below it, and their paths have 107 letters at most
# Read when Ray is imported, or starts. Its C++ part writes to the terminal past Python.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or what still runs when Ray is left starts another
}


@dataclass(frozen=True)
class Cluster:
    """Where the work is done. `address` is "auto" for the Ray that runs on this machine, or `host:port` of one that
    this machine belongs to; without it a Ray of its own is started here. `workers` actors, or one for each CPU."""

    address: str | None = None
    workers: int | None = None

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Ray, for the length of the block; if this process has one already, that stays.

        Raises:
            AslTritonError: no Ray answers there, it is of another version, or none can be started.
        """
        with quiet():
            import ray
            import ray.data

            if ray.is_initialized():
                yield
                return
            with tempfile.TemporaryDirectory(prefix="asl-ray-", dir=SHORT, ignore_cleanup_errors=True) as folder:
                self._join(ray, folder)
                try:
                    silence_ray_data(ray)
                    yield
                finally:
                    ray.shutdown()

    def actors(self, blocks: int) -> int:
        """How many actors are started for so many blocks of clips."""
        import ray

        return self.workers or max(min(int(ray.cluster_resources().get("CPU", 1)), blocks), 1)  # type: ignore[no-untyped-call]

    def _join(self, ray: Any, folder: str) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address is None:
            options |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": usable_cpus(),
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": folder,
            }
        else:
            check(self.address)
            options["address"] = self.address
        try:
            with stderr_closed():
                ray.init(**options)
        except (Exception, SystemExit) as exc:  # Ray exits where it is asked at a port that is something else's
            ray.shutdown()
            raise AslTritonError(self._refused(exc)) from exc

    def _refused(self, exc: BaseException) -> str:
        said = " ".join(str(exc).split()) if isinstance(exc, Exception) else "what listens there is no Ray"
        if self.address is None:
            return f"Ray cannot be started on this machine: {said}"
        if self.address == "auto" and isinstance(exc, ConnectionError):
            return (
                "no Ray runs on this machine: start one (ray start), run this on a machine of the cluster, or leave "
                "--ray-address out, which starts one for the length of this command"
            )
        return (
            f"the Ray cluster at {self.address} cannot be joined: {said}. This machine has to belong to it, with the "
            "same versions of Ray and Python; where it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        )


def check_installed() -> None:
    """See that Ray is installed. It is imported later, when it has been told to be quiet.

    Raises:
        ModuleNotFoundError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError("there is no module ray", name="ray")


def check(address: str) -> None:
    """Refuse addresses that are none, and those where nobody listens: Ray itself would try for minutes.

    Raises:
        AslTritonError: it is such a one.
    """
    if address == "auto":
        return
    if "://" in address:
        raise AslTritonError(
            f"{address}: Ray Data does not run through Ray Client. Run this command on a machine of the cluster with "
            "--ray-address auto, or have it run there: ray job submit -- asl-triton batch ... --ray-address auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise AslTritonError(f"{address!r} is no address of a Ray cluster: name auto, or host:port (--ray-address)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as exc:
        said = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise AslTritonError(f"no Ray cluster answers at {address} ({said}): check --ray-address") from exc


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For the length of the block, Ray finds itself told to be silent; what it prints all the same goes nowhere."""
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def silence_ray_data(ray: Any) -> None:
    """Have Ray Data's messages go to its log file alone."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL + 1)


@contextlib.contextmanager
def stderr_closed() -> Iterator[None]:
    """For the length of the block, nothing that this process writes to standard error is seen: not Ray's C++ either."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
