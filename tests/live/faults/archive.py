"""The archive of 200 clips, and the results of runs over it: whole, or not."""

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


def whole(output: Path, expected: Answers, count: int = CLIPS) -> Answers:
    """The answers of a folder, which has those expected, each clip once in each file, and nothing half-finished."""
    found = answers(output)
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
    assert not hidden(output)
    return found


def some_of(archive: Path, folder: Path, count: int) -> Path:
    """A folder of so many of the archive's clips."""
    (folder / "clips").mkdir()
    for name in NAMES[:count]:
        os.link(archive / name, folder / "clips" / name)
    return folder / "clips"


def doubled(names: list[str]) -> int:
    """How many clips are there twice."""
    return sum(times - 1 for times in Counter(names).values())


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file's whole lines: a journal's last one may be torn, and no other."""
    whole, _, _torn = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def answers(output: Path) -> dict[str, list[tuple[str, float]]]:
    """The glosses and logits of each clip, of a `results.jsonl` that has each clip once and no torn line."""
    content = (output / "results.jsonl").read_bytes()
    assert content == b"" or content.endswith(b"}\n")
    recognitions = [json.loads(line) for line in content.splitlines()]
    names = [recognition["video"] for recognition in recognitions]
    assert names == sorted(set(names)), "a clip is there twice, or out of order"
    return {r["video"]: [(p["gloss"], p["logit"]) for p in r["predictions"]] for r in recognitions}


def hidden(output: Path) -> list[str]:
    """What a run has left beside its results: files that were not finished, and its lock."""
    return sorted(name for name in os.listdir(output) if name.startswith("."))
