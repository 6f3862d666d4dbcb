"""What a release says about itself. `pyproject.toml` has the version; the rest must agree with it."""

import re
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

import asl_triton
from tests.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    pytest.skip("needs tomllib (Python 3.11 or newer)", allow_module_level=True)

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
HEADINGS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_newest_release_in_the_changelog_is_the_version() -> None:
    unreleased, *releases = re.findall(r"^## (.*)$", CHANGELOG, flags=re.MULTILINE)
    assert unreleased == "[Unreleased]"
    parsed = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", release) for release in releases]
    assert all(parsed), releases
    assert next(match[1] for match in parsed if match) == VERSION
    dates = [date.fromisoformat(match[2]) for match in parsed if match]
    assert dates == sorted(dates, reverse=True)


def test_changelog_uses_the_headings_of_keep_a_changelog() -> None:
    assert set(re.findall(r"^### (.*)$", CHANGELOG, flags=re.MULTILINE)) <= HEADINGS


def test_citation_has_the_version_and_date_of_the_newest_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == VERSION
    assert f"\n## [{VERSION}] - {citation['date-released']}\n" in CHANGELOG


def test_package_takes_its_version_from_its_metadata() -> None:
    assert asl_triton.__version__ == VERSION
    sources = [path for folder in ("client", "export", "deploy", "ui") for path in Path(ROOT, folder).rglob("*.py")]
    assert [path for path in sources if re.search(r"""__version__ = ["']""", path.read_text(encoding="utf-8"))] == []
