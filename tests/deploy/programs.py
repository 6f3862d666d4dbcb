"""Programs that tests need besides Python packages, from the virtual environment or PATH."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str, remedy: str) -> Path:
    """Return the path of a program. If it is missing, skip the test and name the remedy; in CI, fail."""
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    found = shutil.which(name, path=search)
    if found is None:
        skip_or_fail(f"`{name}` is not installed: {remedy}")
    assert found is not None
    return Path(found)


def skip_or_fail(reason: str) -> None:
    """Skip with the reason, or fail in CI, where everything must be installed."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
