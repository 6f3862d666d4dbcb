"""Triton in production: NVIDIA's container, its flags in one file, and only models whose files were checked."""
