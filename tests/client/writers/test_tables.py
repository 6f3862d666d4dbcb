"""Result files of recognitions: their contents, and that they are complete or absent."""

import csv
import dataclasses
import json
import re
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from asl_triton.errors import AslTritonError
from asl_triton.results import Failure, Prediction, Recognition, SignerBox
from asl_triton.writers.tables import COLUMNS, ROWS_PER_GROUP, SINKS, JsonLinesSink, build_arrow_schema, iter_rows
from tests.client.conftest import Shrink

NAMES = ("a.mp4", 'two "words", and\\n.mp4', "🤟/été.mp4")


def make_recognition(video: str, num_glosses: int = 3) -> Recognition:
    predictions = tuple(Prediction(n + 1, f"gloss {n}", n, 0.5 / (n + 1), 1.5 - n) for n in range(num_glosses))
    return Recognition(video, "signs", predictions, False, 25, 1.0004, 1, 0.1, 0.2, ("cut off",))


def write_results(name: str, path: Path, recognitions: list[Recognition]) -> None:
    with SINKS[name](path) as sink:
        for one in recognitions:
            sink.write(one)


def test_text_matches_the_earlier_project_byte_for_byte(shared_folder: Path, tmp_path: Path) -> None:
    theirs = (shared_folder / "wlasl" / "asl_inference_results.txt").read_bytes()
    recognitions = []
    for block in theirs.decode().split("\r\n\r\n"):
        video, *lines = block.split("\r\n")
        found = [re.fullmatch(r"(\d+)\. (.*?) +\((.*)%\)", line) for line in lines]
        predictions = tuple(Prediction(int(m[1]), m[2], 0, float(m[3]) / 100, 0.0) for m in found if m)
        assert len(predictions) == 10
        recognitions.append(Recognition(video.removeprefix("Video: "), "", predictions, False, 0, 0, 1, 0, 0))
    write_results("txt", tmp_path / "results.txt", recognitions)
    assert (tmp_path / "results.txt").read_bytes() == theirs


def test_csv_round_trips(tmp_path: Path) -> None:
    recognitions = [make_recognition(name) for name in NAMES]
    write_results("csv", tmp_path / "results.csv", recognitions)
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(COLUMNS)
    assert read == [{key: str(value) for key, value in row.items()} for one in recognitions for row in iter_rows(one)]
    assert (read[0]["video"], read[0]["rank"], read[0]["duration_s"]) == ("a.mp4", "1", "1.0")


def test_jsonl_round_trips(tmp_path: Path) -> None:
    recognitions = [make_recognition(name) for name in NAMES]
    write_results("jsonl", tmp_path / "results.jsonl", recognitions)
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [json.loads(json.dumps(dataclasses.asdict(one))) for one in recognitions]
    for values in expected:
        # Present only if a box was used or frames were lost.
        assert (values.pop("signer"), values.pop("lost_frames")) == (None, 0)
    assert [json.loads(line) for line in lines] == expected


def test_missing_verdict_is_null_or_an_empty_cell(tmp_path: Path) -> None:
    unjudged = dataclasses.replace(make_recognition("a.mp4", num_glosses=1), unsure=None)
    for name in SINKS:
        write_results(name, tmp_path / f"results.{name}", [unjudged])
    assert json.loads((tmp_path / "results.jsonl").read_text())["unsure"] is None
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == list(COLUMNS) and row["unsure"] == ""
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.column("unsure").to_pylist() == [None] and str(table.schema.field("unsure").type) == "bool"


def test_jsonl_has_the_signers_box_if_one_was_used(tmp_path: Path) -> None:
    boxed = dataclasses.replace(make_recognition("a.mp4"), signer=SignerBox(0.25, 0.0, 0.75, 1.0, "dataset", 0.5))
    write_results("jsonl", tmp_path / "results.jsonl", [boxed])
    values = json.loads((tmp_path / "results.jsonl").read_text())
    assert values["signer"] == {"box": [0.25, 0.0, 0.75, 1.0], "source": "dataset", "confidence": 0.5}


def test_parquet_round_trips_with_types(tmp_path: Path) -> None:
    recognitions = [make_recognition(f"{n:04}.mp4", num_glosses=10) for n in range(ROWS_PER_GROUP // 10 + 1)]
    write_results("parquet", tmp_path / "results.parquet", recognitions)
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.schema.equals(build_arrow_schema())
    assert table.to_pylist() == [row for one in recognitions for row in iter_rows(one)]


@pytest.mark.parametrize("name", SINKS)
def test_empty_results_are_a_complete_file(tmp_path: Path, name: str) -> None:
    write_results(name, tmp_path / "results", [])
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    if name == "parquet":
        assert pq.read_table(tmp_path / "results").num_rows == 0
    else:
        assert (tmp_path / "results").read_text() in ("", ",".join(COLUMNS) + "\n")


def test_failures_are_written_as_lines(tmp_path: Path) -> None:
    with JsonLinesSink[Failure](tmp_path / "errors.jsonl") as sink:
        sink.write(Failure("a.mp4", "empty"))
    assert (tmp_path / "errors.jsonl").read_text() == '{"video": "a.mp4", "error": "empty", "rejected": false}\n'


@pytest.mark.parametrize("name", SINKS)
def test_exception_keeps_the_previous_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "results"
    path.write_text("of an earlier run")
    with pytest.raises(ZeroDivisionError), SINKS[name](path) as sink:
        sink.write(make_recognition("a.mp4"))
        _ = 1 / 0
    assert path.read_text() == "of an earlier run"
    assert [left.name for left in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize("count", [50, 2000])  # the disk fills up on closing the file, or long before
def test_full_disk_keeps_the_previous_file(disk: tuple[Path, Shrink], name: str, count: int) -> None:
    folder, shrink = disk
    path = folder / "results"
    path.write_text("of an earlier run")
    random = Random(0)  # names that Parquet cannot compress
    varied = [make_recognition(f"{random.getrandbits(256):x}.mp4") for _ in range(count)]
    with shrink(4096), pytest.raises(AslTritonError, match=r"cannot write .*results: .*\. Make room"):
        write_results(name, path, varied)
    assert path.read_text() == "of an earlier run"
    assert [left.name for left in folder.iterdir()] == ["results"]


@pytest.mark.parametrize("name", SINKS)
def test_unwritable_path_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere" / "results", tmp_path / "folder"):
        with pytest.raises(AslTritonError, match="cannot write"):
            write_results(name, path, [make_recognition("a.mp4")])
    assert [left.name for left in tmp_path.iterdir()] == ["folder"]
