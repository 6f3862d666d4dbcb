"""Video bytes in, glosses out: the whole of it is in the package asl-triton, which this server's Python must have."""

import triton_python_backend_utils as pb_utils

try:
    from asl_triton_deploy.sign_model import SignModel as TritonPythonModel
except ModuleNotFoundError as exc:
    raise pb_utils.TritonModelException(
        f"the server's Python has no module {exc.name!r}: install asl-triton there, or take the folders recognize_sign "
        "and recognize_sign_stream out of the model repository"
    ) from exc

__all__ = ["TritonPythonModel"]
