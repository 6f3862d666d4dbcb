"""The entry point of the Triton image, run as the image runs it, with the wheel's real Triton."""

import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from asl_triton.models.checksums import write_checksums
from asl_triton_deploy.production.flags import FLAGS
from asl_triton_deploy.readiness import is_ready
from asl_triton_deploy.triton_binary import CPU_SETTINGS, Machine, find_binary

KEY = "a-key-of-sixteen-signs"
PORTS = ("http", "grpc", "metrics")
STARTUP_S = 60.0


def lay_out_image(repository: Path, folder: Path) -> dict[str, str]:
    """Return the environment of a container that serves `repository`, with everything under `folder` instead of `/`.

    The wheel's Triton is on PATH. The flag file leaves out the flags that are too new for it.
    """
    write_checksums(repository)
    (folder / "bin").mkdir()
    binary = find_binary(Machine.here(), repository)
    (folder / "bin" / "tritonserver").symlink_to(binary.path)
    condition = "{% if triton >= (2, 68) %}"
    assert FLAGS.read_text().count(condition) == 1
    (folder / "triton.flags").write_text(FLAGS.read_text().replace(condition, "{% if false %}"))
    return {
        "PATH": f"{folder / 'bin'}:{binary.environment['PATH']}",
        "ASL_TRITON_API_KEY": KEY,
        "ASL_TRITON_TLS": "off",
        "ASL_TRITON_REPOSITORY": str(repository),
        "ASL_TRITON_SERVED": str(folder / "run" / "models"),
        "ASL_TRITON_IMAGE_MODELS": str(folder / "image_models"),
        "ASL_TRITON_FLAGS": str(folder / "triton.flags"),
    }


@contextmanager
def run_entry_point(
    image: Mapping[str, str], folder: Path, startup_s: float = STARTUP_S
) -> Iterator[tuple[psutil.Popen, list[int]]]:
    """Run the entry point with the extra options that the wheel's Triton needs.

    Yields the process and the ports of PORTS once it is ready. The entry point sets the CPU settings itself.
    """
    binary = find_binary(Machine.here(), Path(image["ASL_TRITON_REPOSITORY"]))
    ports = find_free_ports(3)
    addresses = [
        f"--{name}-{what}"
        for name, port in zip(PORTS, ports, strict=True)
        for what in ("address=127.0.0.1", f"port={port}")
    ]
    environment = {name: value for name, value in binary.environment.items() if name not in CPU_SETTINGS}
    own_memory = f"--backend-config=python,shm-region-prefix-name=entry-point-{secrets.token_hex(8)}-"
    flags = [*binary.options(folder / "backends"), *addresses, own_memory]
    command = [sys.executable, "-m", "asl_triton_deploy.production", *flags]
    with (folder / "log").open("wb") as log:
        process = psutil.Popen(command, env={**environment, **image}, stdout=log, stderr=log)
    try:
        wait_until_ready(process, ports[0], folder / "log", startup_s)
        yield process, ports
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def find_free_ports(count: int) -> list[int]:
    """Return free ports of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until_ready(process: psutil.Process, http_port: int, log: Path, startup_s: float = STARTUP_S) -> None:
    """Wait until Triton is ready, or fail with the end of its log."""
    deadline = time.monotonic() + startup_s
    while not is_ready("127.0.0.1", http_port):
        assert process.is_running() and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)
