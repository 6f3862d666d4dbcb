"""Files of version 0.1.0 (commit 9f94336) still work: model folders, `recognize_sign`, journals and results."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from asl_triton.batch.journal import JOURNAL
from tests.command_line import CommandResult, asl_triton

EARLIER = Path(__file__).parent / "earlier_version"
FORMATS = ("txt", "csv", "jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the earlier files, with the clips' original modification times."""
    shutil.copytree(EARLIER, tmp_path / "work")
    for line in (EARLIER / "results" / JOURNAL).read_text().splitlines()[1:]:
        outcome = json.loads(line)
        _size, mtime_ns, _sha256 = outcome["stamp"]
        os.utime(tmp_path / "work" / "clips" / outcome["video"], ns=(mtime_ns, mtime_ns))
    return tmp_path / "work"


def run_batch(capsys: pytest.CaptureFixture[str], folder: Path, *options: object) -> CommandResult:
    local = ("--local", "--repository", folder / "model_repository")
    return asl_triton(capsys, "batch", folder / "clips", "--output", folder / "results", *local, *options)


def read_rows(path: Path) -> list[tuple[str, str, float]]:
    """Read the clip, gloss and confidence of each row."""
    with path.open(newline="") as file:
        return [(row["video"], row["gloss"], float(row["confidence"])) for row in csv.DictReader(file)]


def test_journal_is_resumed_with_the_same_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FORMATS:
        (folder / "results" / f"results.{name}").unlink()
    done = run_batch(capsys, folder, "--format", ",".join(FORMATS), "--json")
    assert done.code == 3, done.output  # text.mp4 is tried again, and is still not a video
    summary = json.loads(done.out)
    assert (summary["recognized"], summary["recognised"], summary["known_before"]) == (2, 2, 2)
    assert [failure["video"] for failure in summary["failures"]] == ["text.mp4"]
    for name in FORMATS:
        written = (folder / "results" / f"results.{name}").read_bytes()
        assert written == (EARLIER / "results" / f"results.{name}").read_bytes()


@pytest.mark.parametrize("send", ["frames", "video"])
def test_model_folder_gives_the_same_answers(folder: Path, send: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_batch(capsys, folder, "--fresh", "--format", "csv", "--send", send)
    assert done.code == 3, done.output
    found, known = read_rows(folder / "results" / "results.csv"), read_rows(EARLIER / "results" / "results.csv")
    assert [row[:2] for row in found] == [row[:2] for row in known]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in known], abs=1e-3)
