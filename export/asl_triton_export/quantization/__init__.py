"""Quantization to int8, and what it costs in accuracy."""
