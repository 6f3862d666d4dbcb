"""Runs Triton on this machine, without Docker."""

import os
import pwd
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from asl_triton.errors import AslTritonError, ServerError
from asl_triton.models.recognize_sign import REPOSITORIES_VARIABLE
from asl_triton.transport.shm_region import leave_key, new_key
from asl_triton_deploy.model_layout import choose_models, link_models
from asl_triton_deploy.ports import claim_ports, format_reachable_address, ipv4_address
from asl_triton_deploy.readiness import check_answers, explain, is_ready, last_error, model_states, server_name, tail
from asl_triton_deploy.server_flags import build_server_flags
from asl_triton_deploy.supervisor import SupervisedTriton
from asl_triton_deploy.triton_binary import Machine, find_binary

POLL_S = 0.05
FIRST_ACCOUNT = 1000  # lower user ids belong to services on Debian and Red Hat


class LocalTriton:
    """A Triton that serves the models of `repository` inside the `with` block, and leaves no process behind.

    A port of None picks a free one. `models` names the models to load, all by default. `recognize_sign` adds the two
    models that take whole videos: the repository's own, or those that ship with us. Without `log_path`, the log is a
    temporary file, which is kept only if something goes wrong. The block starts once every model has answered a tiny
    clip. If Triton crashes later, or a model's process dies, Triton is restarted.

    `shared_memory` says whether this user's clients may share memory with Triton. Triton accepts their key only on its
    command line, which every user of the machine can read, so the default is off on machines with other users.

    Raises:
        AslTritonError: the repository is unusable, or this machine has no Triton.
        ServerError: Triton does not start.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        log_path: Path | None = None,
        startup_timeout_s: float = 120.0,
        models: Sequence[str] | None = None,
        recognize_sign: bool = False,
        shared_memory: bool | None = None,
    ) -> None:
        self.repository = repository
        self.host = host
        self.startup_timeout_s = startup_timeout_s
        self.models: list[str] = []
        self.from_wheel = False
        self.pid = 0  # of Triton, once started
        self._wanted_ports = {"gRPC": grpc_port, "HTTP": http_port, "metrics": metrics_port}
        self._wanted_models = models
        self._recognize_sign = recognize_sign
        self._shared_memory = has_one_user() if shared_memory is None else shared_memory
        self._wanted_log = log_path
        self._bound_to = ""
        self._ports: dict[str, int] = {}
        self._log_path = Path()
        self._models_folder = Path()
        self._name = f"asl-triton-{secrets.token_hex(8)}"
        self._supervised: SupervisedTriton | None = None

    @property
    def address(self) -> str:
        """The gRPC address, as `host:port`."""
        return self._address("gRPC")

    @property
    def http_address(self) -> str:
        """The HTTP address, as `host:port`."""
        return self._address("HTTP")

    @property
    def metrics_address(self) -> str:
        """The address of `/metrics`, as `host:port`."""
        return self._address("metrics")

    @property
    def shares_memory(self) -> bool:
        """Whether this user's clients may share memory with Triton."""
        return self._shared_memory

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return not self._bound_to.startswith("127.")

    @property
    def supervisor_pid(self) -> int:
        """The process that stops Triton on SIGTERM, and exits once nothing of Triton is left."""
        return self._running().pid

    @property
    def log_path(self) -> Path:
        """The log of Triton and its models."""
        return self._log_path

    def __enter__(self) -> "LocalTriton":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> "LocalTriton":
        """Start Triton and wait until every model answers."""
        if self._supervised is not None:
            raise RuntimeError("this LocalTriton is running")
        repository = self.repository.absolute()
        binary = find_binary(Machine.here(), repository)
        models = choose_models(repository, self._wanted_models, recognize_sign=self._recognize_sign)
        for model in models:
            model.check(binary.config_name)
        self._bound_to = ipv4_address(self.host)
        self._ports = claim_ports(self._bound_to, self._wanted_ports)
        self.models = [model.name for model in models]
        self.from_wheel = binary.is_wheel
        self._log_path = _new_log(self._wanted_log)
        folder = Path(tempfile.mkdtemp(prefix="asl-triton-"))
        try:
            self._models_folder = folder / "models"
            link_models(models, self._models_folder)
            memory_key = new_key() if self._shared_memory else None
            options = build_server_flags(self._models_folder, self._bound_to, self._ports, self._name, memory_key)
            command = [str(binary.path), *binary.options(folder / "backends"), *options]
            environment = {**binary.environment, REPOSITORIES_VARIABLE: str(self._models_folder)}
            self._supervised = SupervisedTriton(command, environment, folder, self._name, self._log_path)
            self.pid = self._supervised.triton_pid
            if memory_key is not None:
                with suppress(OSError):  # out of space: clients fall back to gRPC
                    leave_key(self._name, self._ports["gRPC"], memory_key)
            self._wait_until_ready(self._supervised)
        except BaseException:
            self._end()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self

    def wait(self) -> NoReturn:
        """Wait while Triton runs, and raise ServerError if it exits by itself."""
        supervised = self._running()
        supervised.has_ended(None)
        error = self._death(f"Triton exited by itself, {supervised.describe_end()}")
        self._end()
        raise error

    def stop(self) -> None:
        """Stop Triton, if it is running, and wait until all of its processes have ended."""
        if self._supervised is None:
            return
        self._end()
        if self._wanted_log is None:
            self._log_path.unlink(missing_ok=True)

    def detach(self) -> None:
        """Let Triton outlive this process and the `with` block. From then on, `supervisor_pid` stops it."""
        try:
            self._running().detach()
        except BrokenPipeError:
            self.wait()
        self._supervised = None

    def _running(self) -> SupervisedTriton:
        if self._supervised is None:
            raise RuntimeError("this LocalTriton is not running")
        return self._supervised

    def _address(self, protocol: str) -> str:
        if not self._ports:
            raise RuntimeError("a LocalTriton has addresses once it is started")
        return f"{format_reachable_address(self._bound_to)}:{self._ports[protocol]}"

    def _wait_until_ready(self, supervised: SupervisedTriton) -> None:
        host, port = format_reachable_address(self._bound_to), self._ports["HTTP"]
        deadline = time.monotonic() + self.startup_timeout_s
        while time.monotonic() < deadline:
            if supervised.has_ended(POLL_S):
                why = self._in_callers_terms(last_error(self._log()))
                raise self._death(f"Triton exited during startup, {supervised.describe_end(why)}")
            # Another Triton may have taken the port in the meantime.
            states = model_states(host, port) if server_name(host, port) == self._name else None
            if states is None or any(model.state == "LOADING" for model in states):
                continue
            failed = [model for model in states if model.state != "READY"]
            if failed:
                names = "1 model" if len(states) == 1 else f"{len(failed)} of {len(states)} models"
                why = self._in_callers_terms(explain(failed, self._log()))
                raise ServerError(f"Triton could not load {names}: {why}. Its log is {self._log_path}")
            if is_ready(host, port):
                for model in self.models:
                    check_answers(host, port, model)
                supervised.watch()
                return
        raise ServerError(
            f"Triton was not ready after {self.startup_timeout_s:g} seconds: give it more time, or see its log, "
            f"{self._log_path}, which ends:\n{tail(self._log())}"
        )

    def _death(self, what: str) -> ServerError:
        return ServerError(f"{what}. Its log, {self._log_path}, ends:\n{tail(self._log())}")

    def _log(self) -> str:
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def _in_callers_terms(self, text: str) -> str:
        return text.replace(str(self._models_folder), str(self.repository))

    def _end(self) -> None:
        supervised, self._supervised = self._supervised, None
        if supervised is not None:
            supervised.stop()


def _new_log(wanted: Path | None) -> Path:
    if wanted is None:
        number, path = tempfile.mkstemp(prefix="asl-triton-", suffix=".log")
        os.close(number)
        return Path(path)
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.write_bytes(b"")
    except OSError as exc:
        raise AslTritonError(f"cannot write the log {wanted}: {exc.strerror}") from exc
    return wanted.absolute()


def has_one_user() -> bool:
    """Whether this user and root are the only ones who can log in on this machine or are running anything.

    Accounts from a directory (LDAP) may not be listed, so processes count too.
    """
    own = {0, os.getuid()}
    accounts = {
        account.pw_uid
        for account in pwd.getpwall()
        if account.pw_uid >= FIRST_ACCOUNT
        and account.pw_name != "nobody"
        and not account.pw_shell.endswith(("nologin", "false"))
    }
    running = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has exited
            running.add(process.stat().st_uid)
    return not (accounts - own) and all(uid in own or uid < FIRST_ACCOUNT for uid in running)
