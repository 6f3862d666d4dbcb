"""The options that Triton is started with."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from asl_triton_deploy.warden import EXIT_TIMEOUT_S

# Frames go to the Python stub through shared memory: a 64-frame clip is 9.6 MB, and a region grows when it must.
SHM_BYTES = 16 * 1024 * 1024
# What no client of ours asks for, and what lets a caller read this machine's shared memory or write its files.
CLOSED_APIS = "shared-memory,trace,logging"


def server_options(repository: Path, address: str, ports: Mapping[str, int], name: str) -> list[str]:
    """Serve all of `repository` on `address` and nothing else, as Triton 2.51 and newer understand it.

    `name` tells this server from all others of this machine: it is its id and how its shared memory is called.
    """
    n_cores = len(os.sched_getaffinity(0))
    # Nobody gets to know the key, so that what needs it is closed.
    closed = f"{CLOSED_APIS}:asl-triton={secrets.token_hex(16)}"
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
        f"--grpc-restricted-protocol={closed}",
        f"--http-address={address}",
        f"--http-port={ports['HTTP']}",
        f"--http-restricted-api={closed}",
        f"--metrics-address={address}",
        f"--metrics-port={ports['metrics']}",
        f"--backend-config=python,shm-region-prefix-name={name}-",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_BYTES}",
    ]
