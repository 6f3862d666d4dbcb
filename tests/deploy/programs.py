"""Programs that tests need beside Python packages: the environment's, or the machine's."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str, remedy: str) -> Path:
    """Where a program is; a test that has none is skipped with the remedy, and fails in CI."""
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    found = shutil.which(name, path=search)
    if found is None:
        missing(f"there is no `{name}`: {remedy}")
    assert found is not None
    return Path(found)


def missing(what: str) -> None:
    """Skip with the reason; in CI, where everything has to be there, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
