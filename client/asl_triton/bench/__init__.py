"""Throughput and latency of a served model under load."""
