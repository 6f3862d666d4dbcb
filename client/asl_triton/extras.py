"""Packages that only some installs have: imported where they are used."""

from collections.abc import Iterator
from contextlib import contextmanager

from asl_triton.errors import AslTritonError


@contextmanager
def require_extra(name: str, what: str = "this command") -> Iterator[None]:
    """Turn a missing module inside the block into a sentence that says what needs it, and which extra to install.

    Raises:
        AslTritonError: a module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        raise AslTritonError(
            f"{what} needs the Python module {exc.name!r}, which is not installed: pip install 'asl-triton[{name}]'"
        ) from exc
