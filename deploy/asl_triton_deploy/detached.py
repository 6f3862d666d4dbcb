"""The Triton that `asl-triton serve --detach` leaves running: one per user and machine, recorded in a file."""

import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import portalocker

from asl_triton.errors import AslTritonError, ServerError
from asl_triton.files import atomic_write
from asl_triton.processes import read_start_time
from asl_triton_deploy.local import POLL_S, LocalTriton
from asl_triton_deploy.supervisor import STOP_TIMEOUT_S


@dataclass(frozen=True)
class RunningTriton:
    """A running Triton. Process `pid` stops it on SIGTERM; `started` guards against a reused process id."""

    pid: int
    started: str
    address: str
    http_address: str
    metrics_address: str
    repository: str
    models: list[str]
    log: str

    def is_running(self) -> bool:
        """Whether the process is still running."""
        return read_start_time(self.pid) == self.started


def detach(server: LocalTriton) -> RunningTriton:
    """Start `server`, leave it running in the background, and record it.

    Raises:
        ServerError: one is already running.
        AslTritonError: see `LocalTriton`.
    """
    with _lock_state() as state_path:
        running = _read(state_path)
        if running is not None:
            raise ServerError(
                f"a detached Triton is already running at {running.address} with {running.repository}: "
                "stop it with `asl-triton serve --stop`"
            )
        with server:
            detached = describe(server)
            _write(state_path, detached)
            server.detach()
        return detached


def stop_detached() -> RunningTriton | None:
    """Stop the detached Triton and wait until all of its processes have ended. Returns None if there is none."""
    with _lock_state() as state_path:
        running = _read(state_path)
        if running is not None:
            with suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while running.is_running():
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"the detached Triton (process {running.pid}) does not stop: see its log, {running.log}"
                    )
                time.sleep(POLL_S)
        state_path.unlink(missing_ok=True)
        return running


def describe(server: LocalTriton) -> RunningTriton:
    """Describe a running server for programs and later commands."""
    started = read_start_time(server.supervisor_pid)
    if started is None:
        raise ServerError(f"Triton exited as soon as it was ready: see its log, {server.log_path}")
    return RunningTriton(
        pid=server.supervisor_pid,
        started=started,
        address=server.address,
        http_address=server.http_address,
        metrics_address=server.metrics_address,
        repository=str(server.repository.absolute()),
        models=server.models,
        log=str(server.log_path),
    )


def state_folder() -> Path:
    """Return the user's folder for what outlives a command: the state of a detached Triton, and logs."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "asl-triton"


@contextmanager
def _lock_state() -> Iterator[Path]:
    """Lock and return the path of this machine's state file."""
    folder = state_folder()
    lock = portalocker.Lock(
        folder / "serve.lock", timeout=0, fail_when_locked=True, flags=portalocker.LOCK_EX | portalocker.LOCK_NB
    )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except portalocker.AlreadyLocked as exc:
        raise ServerError(
            "another `asl-triton serve` is starting or stopping the detached Triton: wait for it"
        ) from exc
    except (OSError, portalocker.LockException) as exc:
        raise AslTritonError(f"cannot write to {folder}, where detached Tritons are recorded: {exc}") from exc
    try:
        # Several machines may share a home folder.
        yield folder / f"serve-{platform.node()}.json"
    finally:
        lock.release()


def _read(state_path: Path) -> RunningTriton | None:
    try:
        detached = RunningTriton(**json.loads(state_path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return detached if detached.is_running() else None


def _write(state_path: Path, detached: RunningTriton) -> None:
    try:
        with atomic_write(state_path) as file:
            file.write(json.dumps(asdict(detached)).encode())
    except OSError as exc:
        raise AslTritonError(f"cannot write {state_path}, where detached Tritons are recorded: {exc}") from exc
