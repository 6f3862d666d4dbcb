"""Throughput and latency of a server."""
