"""Measures the throughput and latency of a served model under load."""
