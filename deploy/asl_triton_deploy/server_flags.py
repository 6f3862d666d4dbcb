"""The options that Triton is started with."""

import os
from collections.abc import Mapping
from pathlib import Path

from asl_triton.transport.shm_region import KEY_NAME, new_key
from asl_triton_deploy.supervisor import EXIT_TIMEOUT_S

# Frames go to the Python stub through shared memory: a 64-frame clip is 9.6 MB, and a region grows when it must.
SHM_BYTES = 16 * 1024 * 1024
# What no client of ours asks for, and what lets a caller write this machine's files.
CLOSED_APIS = "trace,logging"
# The header for these has a colon in its name, which none can have in HTTP or gRPC. So they are closed even to those
# who read the key in `ps`, where Triton's command line shows it.
CLOSED_KEY_NAME = "closed:to-everybody"


def build_server_flags(
    repository: Path, address: str, ports: Mapping[str, int], name: str, memory_key: str | None = None
) -> list[str]:
    """Serve all of `repository` on `address` and nothing else, as Triton 2.51 and newer understand it.

    `name` tells this server from all others of this machine: it is its id and how its shared memory is called. Who
    shares memory with it, over gRPC, must know `memory_key`, which every user of this machine can read in `ps`: Triton
    takes it on its command line alone. Nobody may without one.
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
        # When a model fails, Triton comes up all the same and its index says why; then we stop it.
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
