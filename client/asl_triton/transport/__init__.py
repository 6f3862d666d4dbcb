"""Requests to Triton: gRPC, shared memory, retries, TLS, and what its errors mean."""
