"""Packages that only some installs have: imported where they are used, and how to install them."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

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
            f"{what} needs the Python module {exc.name!r}, which is not installed: {format_install_command(name)}"
        ) from exc


def format_install_command(extra: str) -> str:
    """Return the `pip install` command that adds an extra to this installation of asl-triton.

    It names the clone, wheel or repository that asl-triton was installed from, which pip records in
    `direct_url.json` (https://packaging.python.org/en/latest/specifications/direct-url/). An installation without that
    record came from a package index by name.
    """
    origin = _read_direct_url()
    url = origin.get("url", "")
    if url.startswith("file:"):
        requirement = f"{url2pathname(urlsplit(url).path)}[{extra}]"
    elif vcs := origin.get("vcs_info"):
        requirement = f"asl-triton[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    elif url:
        requirement = f"asl-triton[{extra}] @ {url}"
    else:
        requirement = f"asl-triton[{extra}]"
    editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}{shlex.quote(requirement)}"


def _read_direct_url() -> dict[str, Any]:
    """Read where pip installed asl-triton from. Empty if it was installed by name, or is not installed."""
    try:
        recorded = distribution("asl-triton").read_text("direct_url.json")
    except PackageNotFoundError:
        recorded = None
    return json.loads(recorded) if recorded else {}
