"""Quantizes networks to int8, and measures what that costs in accuracy."""
