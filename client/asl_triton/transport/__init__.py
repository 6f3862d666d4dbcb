"""Sends requests to Triton: gRPC, shared memory, retries, TLS, and translation of its errors."""
