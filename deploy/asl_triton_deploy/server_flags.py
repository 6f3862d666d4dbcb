"""Command-line flags for a local Triton."""

import os
from collections.abc import Mapping
from pathlib import Path

from asl_triton.transport.shm_region import KEY_NAME, new_key
from asl_triton_deploy.supervisor import EXIT_TIMEOUT_S

# Frames go to the Python stub through shared memory. A 64-frame clip is 9.6 MB; the region grows when needed.
SHM_BYTES = 16 * 1024 * 1024
# APIs that our clients never use, and that let a caller write files on this machine.
CLOSED_APIS = "trace,logging"
# The header that unlocks these has a colon in its name, which neither HTTP nor gRPC can send. So they stay closed even
# to users who read the key from Triton's command line in `ps`.
CLOSED_KEY_NAME = "closed:to-everybody"


def build_server_flags(
    repository: Path, address: str, ports: Mapping[str, int], name: str, memory_key: str | None = None
) -> list[str]:
    """Build the flags that serve `repository` on `address`, and nothing else, with Triton 2.51 or newer.

    `name` is the server's id and the prefix of its shared memory, and must be unique on this machine. Clients that want
    to share memory over gRPC must send `memory_key`. Triton accepts it only on its command line, so every user of this
    machine can read it in `ps`. Without a key, shared memory is closed.
    """
    n_cores = len(os.sched_getaffinity(0))
    closed = f"{CLOSED_KEY_NAME}={new_key()}"
    memory = f"shared-memory:{KEY_NAME}={memory_key}" if memory_key else f"shared-memory:{closed}"
    return [
        f"--id={name}",
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        # If a model fails to load, Triton starts anyway and its index says why; then we stop it.
        "--exit-on-error=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--model-load-thread-count={min(4, n_cores)}",
        f"--http-thread-count={min(8, 2 * n_cores)}",
        f"--grpc-address={address}",
        f"--grpc-port={ports['gRPC']}",
        f"--grpc-restricted-protocol={memory}",
        f"--grpc-restricted-protocol={CLOSED_APIS}:{closed}",
        f"--http-address={address}",
        f"--http-port={ports['HTTP']}",
        f"--http-restricted-api=shared-memory,{CLOSED_APIS}:{closed}",
        f"--metrics-address={address}",
        f"--metrics-port={ports['metrics']}",
        f"--backend-config=python,shm-region-prefix-name={name}-",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_BYTES}",
    ]
