"""Checks whether this container's Triton answers, for Docker's health check and Kubernetes' liveness probe.

    python -m asl_triton_deploy.production.health [--stop]

Triton reports ready even when one of its models refuses every request, so this sends each model a tiny clip. With
`--stop` it stops a Triton whose model is dead, because Docker restarts a container that exits, not one that is
unhealthy.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from asl_triton.errors import AslTritonError, ServerError
from asl_triton_deploy.readiness import check_answers, is_ready

HOST = "127.0.0.1"
STATE = "health.json"


@dataclass(frozen=True)
class HealthState:
    """What the entry point writes for this program, readable only by its own user."""

    pid: int  # of Triton
    http_port: int
    key: str  # opens inference over HTTP
    models: list[str]

    def save(self, path: Path) -> None:
        """Write it, replacing what an earlier container left."""
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)

    @classmethod
    def load(cls, path: Path) -> "HealthState":
        """Read what `save` wrote.

        Raises:
            AslTritonError: the file is missing or invalid.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as exc:
            raise AslTritonError(f"cannot read {path}, which the entry point writes: {exc}") from exc


def find_state(variables: Mapping[str, str]) -> Path:
    """Return the path of the state, next to the folder that is served."""
    return Path(variables.get("ASL_TRITON_SERVED") or "/run/asl-triton/models").parent / STATE


def main(arguments: Sequence[str], variables: Mapping[str, str]) -> int:
    """Send every model a request. Returns 0 if all answer or are busy."""
    try:
        state = HealthState.load(find_state(variables))
    except AslTritonError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    if not is_ready(HOST, state.http_port):
        print("error: Triton is not ready", file=sys.stderr)
        return 1
    for model in state.models:
        try:
            check_answers(HOST, state.http_port, model, {"api-key": state.key})
        except ServerError as exc:
            print(f"error: {exc}", file=sys.stderr)
            if "--stop" in arguments:
                os.kill(state.pid, signal.SIGTERM)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
