"""The archive of 200 clips, and checks of the results of runs over it."""

import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.networks import GLOSSES

CLIPS, FEW = 200, 100
NAMES = [f"{number:03}.mp4" for number in range(CLIPS)]
ALL_FORMATS = ("--format", "csv,jsonl,parquet,txt")

Answers = dict[str, list[tuple[str, float]]]


def check_results(output: Path, expected: Answers, count: int = CLIPS) -> Answers:
    """Check that a folder has each expected answer exactly once and no unfinished files, and return the answers."""
    found = read_answers(output)
    assert list(found) == NAMES[:count]
    for name, ranked in found.items():
        assert [gloss for gloss, _ in ranked] == [gloss for gloss, _ in expected[name]], name
        assert [logit for _, logit in ranked] == pytest.approx([logit for _, logit in expected[name]], abs=1e-4)
    rows = [name for name in found for _ in GLOSSES]
    if (output / "results.csv").exists():
        with (output / "results.csv").open(encoding="utf-8", newline="") as file:
            assert [line["video"] for line in csv.DictReader(file)] == rows
    if (output / "results.parquet").exists():
        assert pq.read_table(output / "results.parquet")["video"].to_pylist() == rows
    if (output / "results.txt").exists():
        assert (output / "results.txt").read_bytes().count(b"Video: ") == len(found)
    assert not list_hidden(output)
    return found


def link_clips(archive: Path, folder: Path, count: int) -> Path:
    """Link the first `count` clips of the archive into a new folder."""
    (folder / "clips").mkdir()
    for name in NAMES[:count]:
        os.link(archive / name, folder / "clips" / name)
    return folder / "clips"


def count_duplicates(names: list[str]) -> int:
    """Count repeated names."""
    return sum(times - 1 for times in Counter(names).values())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of all complete lines. Only the last line of a journal may be incomplete."""
    complete, _, _torn = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in complete.splitlines()]


def read_answers(output: Path) -> dict[str, list[tuple[str, float]]]:
    """Read each clip's glosses and logits from `results.jsonl`. Fails on duplicate clips and incomplete lines."""
    content = (output / "results.jsonl").read_bytes()
    assert content == b"" or content.endswith(b"}\n")
    recognitions = [json.loads(line) for line in content.splitlines()]
    names = [recognition["video"] for recognition in recognitions]
    assert names == sorted(set(names)), "a clip is duplicated or out of order"
    return {r["video"]: [(p["gloss"], p["logit"]) for p in r["predictions"]] for r in recognitions}


def list_hidden(output: Path) -> list[str]:
    """List what a run left next to its results: unfinished files and its lock."""
    return sorted(name for name in os.listdir(output) if name.startswith("."))
