"""Model folders written by earlier versions import this; new ones import `asl_triton.triton_backend.backend`."""

from asl_triton.triton_backend.backend import SignModel

__all__ = ["SignModel"]
