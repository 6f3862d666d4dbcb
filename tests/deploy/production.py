"""The wheel's Triton with the production flags: those of `triton.flags` that its version knows, and no others."""

import secrets
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from asl_triton_deploy.ports import claim_ports
from asl_triton_deploy.production.flags import Settings, triton_flags
from asl_triton_deploy.supervisor import SupervisedTriton
from asl_triton_deploy.triton_binary import Machine, find_binary
from tests.certificates import Certificates
from tests.local_triton import kill_triton

WHEEL = (2, 51)
HOST = "127.0.0.1"
API_KEY = "0123456789abcdef"
STARTUP_S = 60.0


class ProductionTriton:
    """Runs while the `with` block does; `start` and `stop` may be called in it, and the ports stay the same.

    `settings` are those of `Settings`; TLS is off where no certificates are given.
    """

    def __init__(
        self,
        repository: Path,
        certificates: Certificates | None = None,
        *,
        more_flags: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.repository = repository
        self.more_flags = list(more_flags)
        self._folder = Path(tempfile.mkdtemp(prefix="production-"))
        self.log_path = self._folder / "log"
        self._supervised: SupervisedTriton | None = None
        ports = claim_ports(HOST, {"grpc_port": None, "http_port": None, "metrics_port": None})
        self.address, self.http_address, self.metrics_address = (f"{HOST}:{port}" for port in ports.values())
        self._settings: dict[str, Any] = {"api_key": API_KEY, "tls": "off", "exit_timeout_s": 10, **settings, **ports}
        if certificates is not None:
            self._settings |= {"tls": "mutual", "tls_folder": certificates_as_mounted(certificates, self._folder)}

    @property
    def pid(self) -> int:
        """Triton's own."""
        assert self._supervised is not None
        return self._supervised.triton_pid

    @property
    def log(self) -> str:
        """What it has said."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def launch(self) -> SupervisedTriton:
        """Start it and do not wait."""
        settings = Settings(repositories=(self.repository,), address=HOST, **self._settings)
        binary = find_binary(Machine.here(), self.repository)
        folder, name = Path(tempfile.mkdtemp(prefix="production-")), f"production-{secrets.token_hex(8)}"
        own_memory = f"--backend-config=python,shm-region-prefix-name={name}-"  # as the supervisor cleans up
        flags = [*triton_flags(settings, WHEEL), *binary.options(folder / "backends"), *self.more_flags, own_memory]
        command = [str(binary.path), *flags]
        self._supervised = SupervisedTriton(command, binary.environment, folder, name, self.log_path)
        return self._supervised

    def start(self) -> "ProductionTriton":
        """Start it and wait until it is ready."""
        supervised = self.launch()
        deadline = time.monotonic() + STARTUP_S
        while not (self.is_ready() and is_answered(f"http://{self.metrics_address}/metrics")):  # the last to come up
            if supervised.has_ended(0.05) or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"Triton did not start:\n{self.log}")
        return self

    def is_ready(self) -> bool:
        """Whether the readiness probe succeeds."""
        return is_answered(f"http://{self.http_address}/v2/health/ready")

    def count_answers(self, model: str) -> int:
        """How many requests it has answered since it was started, the warm-up included."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        counters = [line for line in lines if line.startswith("nv_inference_request_success") and f'"{model}"' in line]
        return sum(int(line.rpartition(" ")[2]) for line in counters)

    def stop(self) -> None:
        """SIGTERM, and wait until nothing is left of it."""
        if self._supervised is not None:
            self._supervised.stop()
            self._supervised = None

    def __enter__(self) -> "ProductionTriton":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervised is not None:
            kill_triton(self._supervised.pid)  # to end in order takes it seconds
            self.stop()
        shutil.rmtree(self._folder)


def is_answered(url: str) -> bool:
    """Whether a request to `url` succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:  # URLError is one
        return False


def certificates_as_mounted(certificates: Certificates, folder: Path) -> Path:
    """The server's, under the names that a Kubernetes secret gives them."""
    mounted = folder / "tls"
    mounted.mkdir()
    for source, name in (("server.pem", "tls.crt"), ("server.key", "tls.key"), ("authority.pem", "ca.crt")):
        shutil.copyfile(certificates.folder / source, mounted / name)
    return mounted
