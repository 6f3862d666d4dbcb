"""Packages that only some installs have: imported where they are used."""

from collections.abc import Iterator
from contextlib import contextmanager

from asl_triton.errors import AslTritonError


@contextmanager
def require_extra(name: str) -> Iterator[None]:
    """Turn a module that is missing inside the block into the sentence that names the extra to install.

    Raises:
        AslTritonError: the block raised ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        raise AslTritonError(
            f"this needs the Python module {exc.name!r}, which is not installed: pip install 'asl-triton[{name}]'"
        ) from exc
