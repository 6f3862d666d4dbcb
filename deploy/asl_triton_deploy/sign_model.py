"""For model folders written by earlier versions; new ones import `asl_triton.triton_backend.backend`."""

from asl_triton.triton_backend.backend import SignModel

__all__ = ["SignModel"]
