"""What version 0.1.0 (commit 9f94336) wrote keeps working: model folders, `recognize_sign`, journals and results."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from asl_triton.batch.journal import JOURNAL
from tests.command_line import Done, asl_triton

WRITTEN = Path(__file__).parent / "earlier_version"
FORMATS = ("txt", "csv", "jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what was written, with the clips' times of then."""
    shutil.copytree(WRITTEN, tmp_path / "work")
    for line in (WRITTEN / "results" / JOURNAL).read_text().splitlines()[1:]:
        outcome = json.loads(line)
        _size, mtime_ns, _sha256 = outcome["stamp"]
        os.utime(tmp_path / "work" / "clips" / outcome["video"], ns=(mtime_ns, mtime_ns))
    return tmp_path / "work"


def batch(capsys: pytest.CaptureFixture[str], folder: Path, *options: object) -> Done:
    local = ("--local", "--repository", folder / "model_repository")
    return asl_triton(capsys, "batch", folder / "clips", "--output", folder / "results", *local, *options)


def rows(path: Path) -> list[tuple[str, str, float]]:
    """Clip, gloss and confidence."""
    with path.open(newline="") as file:
        return [(row["video"], row["gloss"], float(row["confidence"])) for row in csv.DictReader(file)]


def test_journal_is_resumed_and_gives_the_same_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FORMATS:
        (folder / "results" / f"results.{name}").unlink()
    done = batch(capsys, folder, "--format", ",".join(FORMATS), "--json")
    assert done.code == 3, done.told  # text.mp4 is tried again, and is still no video
    summary = json.loads(done.out)
    assert (summary["recognized"], summary["recognised"], summary["known_before"]) == (2, 2, 2)
    assert [failure["video"] for failure in summary["failures"]] == ["text.mp4"]
    for name in FORMATS:
        written = (folder / "results" / f"results.{name}").read_bytes()
        assert written == (WRITTEN / "results" / f"results.{name}").read_bytes()


@pytest.mark.parametrize("send", ["frames", "video"])
def test_model_folder_gives_the_same_answers(folder: Path, send: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = batch(capsys, folder, "--fresh", "--format", "csv", "--send", send)
    assert done.code == 3, done.told
    found, known = rows(folder / "results" / "results.csv"), rows(WRITTEN / "results" / "results.csv")
    assert [row[:2] for row in found] == [row[:2] for row in known]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in known], abs=1e-3)
