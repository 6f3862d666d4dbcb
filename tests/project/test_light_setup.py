"""`make test-fast` after `make setup-light`: no test file needs a module that is not installed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import OPTIONAL_MODULES
from tests.paths import ROOT

WITHOUT_OPTIONAL_MODULES = f"""
import importlib.util
import sys

missing = {tuple(OPTIONAL_MODULES)}
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in missing else find_spec(name, package)
sys.modules.update(dict.fromkeys(missing))
"""


def test_files_that_need_optional_modules_are_skipped_without_them(tmp_path: Path) -> None:
    (tmp_path / "without_optional_modules.py").write_text(WITHOUT_OPTIONAL_MODULES)
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    variables.pop("CI", None)
    command = [sys.executable, "-m", "pytest", "-p", "without_optional_modules", "--collect-only"]
    done = subprocess.run(
        [*command, "tests/client", "tests/ui"], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "torch is not installed (`make setup` installs it), so these are skipped" in done.stdout
