"""Triton as an operator runs it: NVIDIA's container, its flags in one place, and only models that are checked."""
