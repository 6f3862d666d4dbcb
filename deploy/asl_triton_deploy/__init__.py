"""A real Triton on this machine, without Docker."""
