"""Sends requests to Triton: gRPC, shared memory, retries, TLS, and translation of its errors."""

import os

# gRPC writes to the terminal, and reads this when it is imported; what it has to say becomes our error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
