"""The main workflow with the reference checkpoint: export, Triton, batch, and the same classes as the original."""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from asl_triton_deploy.local import LocalTriton
from tests.command_line import asl_triton

CLIPS = ("07068", "07069")


@pytest.fixture(scope="module")
def glosses(shared_folder: Path) -> list[str]:
    lines = (shared_folder / "wlasl" / "wlasl_class_list.txt").read_text().splitlines()
    return [line.split("\t")[1] for line in lines]


def test_reference_checkpoint_ranks_the_ten_classes_of_the_original(
    reference_triton: LocalTriton,
    shared_folder: Path,
    expected: Mapping[str, np.ndarray],
    glosses: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wlasl = shared_folder / "wlasl"
    output = tmp_path / "results"
    arguments = ["--server", reference_triton.address, "--format", "txt,csv,jsonl,parquet", "--output", output]
    done = asl_triton(capsys, "batch", wlasl / "videos", *arguments)
    assert done.code == 0, done.output
    assert sorted(p.name for p in output.iterdir()) == [
        "journal.jsonl", "results.csv", "results.jsonl", "results.parquet", "results.txt"
    ]  # fmt: skip

    recognitions = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [r["video"] for r in recognitions] == [f"{clip}.mp4" for clip in CLIPS]
    for clip, recognition in zip(CLIPS, recognitions, strict=True):
        logits = expected[f"{clip}/wlasl"].max(axis=0)
        best = np.argsort(-logits)[:10]
        assert [p["class_id"] for p in recognition["predictions"]] == best.tolist()
        assert [p["gloss"] for p in recognition["predictions"]] == [glosses[c] for c in best]
        assert np.abs(np.array([p["logit"] for p in recognition["predictions"]]) - logits[best]).max() <= 1e-3
        assert recognition["num_frames"] == expected[f"{clip}/wlasl/num_frames"]

    rows = list(csv.DictReader((output / "results.csv").read_text().splitlines()))
    assert [row["gloss"] for row in rows] == [p["gloss"] for r in recognitions for p in r["predictions"]]
    assert pq.read_table(output / "results.parquet").column("gloss").to_pylist() == [row["gloss"] for row in rows]
    check_layout_of_the_earlier_project((output / "results.txt").read_bytes(), wlasl / "asl_inference_results.txt")


def check_layout_of_the_earlier_project(ours: bytes, theirs: Path) -> None:
    """Check that both files have the same kinds of lines, in the same order, with the same line endings."""
    line = rb"(?:Video: \S+|\d+\. .{20,} \(\d+\.\d\d%\)|)"
    layout = re.compile(rb"(?:%s\r\n)*%s" % (line, line))
    assert layout.fullmatch(theirs.read_bytes()), "the pattern does not match the earlier project's file"
    assert layout.fullmatch(ours)
    starts = [re.match(rb"Video|\d+\.|", line)[0] for line in ours.split(b"\r\n")]  # type: ignore[index]
    block = [b"Video", *(b"%d." % rank for rank in range(1, 11))]
    assert starts == [*block, b"", *block]
