"""`batch`, `recognize`, `models` and `doctor` as typed: output and exit codes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import typer.main

from asl_triton import Recognizer
from asl_triton.cli import progress as progress_module
from asl_triton.cli.app import app
from asl_triton.cli.progress import ROWS_SHOWN, ClipProgress
from asl_triton.models.card import ModelCard
from asl_triton.presets import PRESETS
from asl_triton.results import Failure, Prediction, Recognition, Timeline
from tests.client import videos
from tests.client.grpc_server import GLOSSES, Triton, serving
from tests.command_line import asl_triton

Capture = pytest.CaptureFixture[str]
IN_THREADS = ("--decoding", "threads")  # for tests that are not about decoding: saves starting processes


@pytest.fixture
def triton() -> Iterator[Triton]:
    with serving(Triton()) as served:
        yield served


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("b.mp4", "a.mp4"):
        videos.clip(folder / name, num_frames=9)
    return folder


def test_successful_batch_exits_with_0(triton: Triton, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "out"
    options = ["--server", triton.address, "--output", output, "--format", "TXT, csv,csv", "--top-k", 2]
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 0, done.output
    assert sorted(path.name for path in output.iterdir()) == ["journal.jsonl", "results.csv", "results.txt"]
    assert done.out.index("a.mp4") < done.out.index("b.mp4")
    assert "2 recognized. " in done.out and "help" in done.out and "clips were in flight on average" in done.output
    options += IN_THREADS
    again = asl_triton(capsys, "batch", clips, *options, "--hash")
    assert again.code == 0 and "2 recognized. " in again.out  # no hash is known yet
    (clips / "c.mp4").write_bytes((clips / "a.mp4").read_bytes())
    again = asl_triton(capsys, "batch", clips, *options)
    assert again.code == 0
    assert "3 recognized, 2 of them in an earlier run (--fresh recognizes them again). " in again.output
    again = asl_triton(capsys, "batch", clips, *options, "--fresh")
    assert again.code == 0 and "3 recognized. " in again.output


def test_batch_passes_the_box_of_the_signer(triton: Triton, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    triton.preset = PRESETS["bsl1k-person"]
    options = ["--server", triton.address, "--output", tmp_path / "out", "--format", "jsonl"]
    done = asl_triton(capsys, "batch", clips, *options, "--signer", "0.25,0,0.75,1")
    assert done.code == 0 and "the signer's box is unknown" not in done.output
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    box = {"box": [0.25, 0.0, 0.75, 1.0], "source": "caller", "confidence": 1.0}
    assert [result["signer"] for result in results] == [box, box]
    again = asl_triton(capsys, "batch", clips, *options, "--signer", "0.25,0,0.75,1")
    assert "2 recognized, 2 of them in an earlier run" in again.output
    shown = asl_triton(
        capsys, "recognize", clips / "a.mp4", "--server", triton.address, "--signer", "0.25,0,0.75,1", "--json"
    )
    assert shown.code == 0 and json.loads(shown.out)["signer"] == box
    without = asl_triton(capsys, "batch", clips, *options)
    assert without.code == 0 and "was written with other settings (signer)" in without.output
    assert "whole frames were used: give the signer's box with --signer x0,y0,x1,y1" in without.output


def test_batch_reports_files_left_from_other_settings(
    triton: Triton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "out"
    options = ["--server", triton.address, "--output", output, *IN_THREADS]
    assert asl_triton(capsys, "batch", clips, *options, "--format", "txt,csv").code == 0
    done = asl_triton(capsys, "batch", clips, *options, "--format", "csv,jsonl", "--top-k", 2)
    assert "journal.jsonl was written with other settings (top_k), so it was renamed to journal." in done.output
    assert f"not written, left from an earlier run: {output / 'results.txt'}" in done.output
    again = asl_triton(capsys, "batch", clips, *options, "--format", "txt,csv,jsonl")
    assert "2 recognized, 2 of them in an earlier run" in again.output and "not written" not in again.output


@pytest.mark.parametrize(("arguments", "message"), [
    (("batch", ""), "it is empty: name a folder"),
    (("batch", ".", "--output", ""), "it is empty: name a folder"),
    (("batch", ".", "--ray-workers", "2"), "Invalid value for --ray-workers"),
    (("batch", ".", "--signer", "234,17,524,414"), "Invalid value for --signer"),
    (("batch", ".", "--signer", "0.7,0,0.3,1"), "Invalid value for --signer"),
    (("batch", ".", "--signer", "left"), "Invalid value for --signer"),
    (("bench", "--output", "/dev/null/below", "--server", "localhost:9"), "cannot write to /dev/null/below"),
    (("evaluate", ".", "--output", "/dev/null/below", "--server", "localhost:9"), "cannot write to /dev/null/below"),
])  # fmt: skip
def test_invalid_folder_or_option_is_reported_before_any_request(
    capsys: Capture, arguments: tuple[str, ...], message: str
) -> None:
    done = asl_triton(capsys, *arguments)
    assert done.code in (1, 2) and message in done.output


def test_batch_with_a_failed_clip_exits_with_3_and_lists_it_in_json(
    triton: Triton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    (clips / "text.mp4").write_bytes(videos.TEXT)
    options = ["--server", triton.address, "--output", tmp_path / "out", *IN_THREADS]
    done = asl_triton(capsys, "batch", clips, *options, "--json")
    summary = json.loads(done.out)
    assert done.code == 3
    assert (summary["recognized"], summary["not_tried"], summary["stopped"]) == (2, 0, None)
    assert [failure["video"] for failure in summary["failures"]] == ["text.mp4"]
    assert summary["files"] == [
        str(tmp_path / "out" / name) for name in ("results.csv", "results.jsonl", "errors.jsonl")
    ]


def test_recognize_prints_the_glosses_of_each_clip(triton: Triton, clips: Path, capsys: Capture) -> None:
    names = sorted(str(path) for path in clips.rglob("*.mp4"))
    done = asl_triton(capsys, "recognize", *names, "--server", triton.address, "--top-k", 2, "--min-confidence", 1)
    assert done.code == 0
    assert all(f"{name} (unsure)" in done.output for name in names)
    with Recognizer(triton.address) as recognizer:
        expected = [recognizer.recognize(name, top_k=2) for name in names]
    assert all(f"1 {recognition.gloss} {recognition.confidence:.1%}" in done.output for recognition in expected)

    done = asl_triton(capsys, "recognize", *names, "--server", triton.address, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["video"], line["predictions"][0]["gloss"]) for line in lines] == [
        (r.video, r.gloss) for r in expected
    ]


def test_recognize_exits_with_3_if_some_clips_fail_and_1_if_all_do(
    triton: Triton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    good, bad = next(clips.rglob("*.mp4")), tmp_path / "text.mp4"
    bad.write_bytes(videos.TEXT)
    done = asl_triton(capsys, "recognize", good, bad, "--server", triton.address)
    assert done.code == 3 and "failed" in done.err and "cannot be read as a video" in done.output
    done = asl_triton(capsys, "recognize", bad, "--server", triton.address, "--json")
    assert done.code == 1 and json.loads(done.out)["video"] == str(bad)
    assert asl_triton(capsys, "recognize", good, "--server", "localhost:9").code == 1


def test_batch_that_loses_its_server_exits_with_3(triton: Triton, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    def shut_down(_frames: np.ndarray) -> np.ndarray:
        if len(triton.asked) > 2:
            triton.ready = False
            raise ValueError("the server is shutting down")
        return np.zeros(len(GLOSSES), np.float32)

    triton.logits = shut_down
    options = ["--server", triton.address, "--output", tmp_path / "out", "--in-flight", 1, "--wait", 0, *IN_THREADS]
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 3
    assert "stopped before the end" in done.out and "1 recognized; 1 left: run the same command again. " in done.output


def test_batch_that_reaches_max_failures_exits_with_3(
    triton: Triton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("c.mp4", "d.mp4", "e.mp4"):
        (clips / name).write_bytes(videos.TEXT)
    options = ["--server", triton.address, "--output", tmp_path / "out", "--in-flight", 1, "--max-failures", 2]
    options += IN_THREADS
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 3
    assert "2 clips have failed, as many as --max-failures allows" in done.output
    assert "2 recognized; 2 failed; 1 left" in done.output


def test_batch_counts_rejected_clips(triton: Triton, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    def fill_the_queue(_frames: np.ndarray) -> np.ndarray:
        triton.faults = (
            [(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")] * 4 if len(triton.asked) == 2 else []
        )
        return np.zeros(len(GLOSSES), np.float32)

    triton.logits = fill_the_queue  # after the labels and the first clip
    options = ["--server", triton.address, "--output", tmp_path / "out", "--in-flight", 1, "--wait", 0, *IN_THREADS]
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 3
    assert "1 recognized; 1 failed (1 rejected: the server was too busy)" in done.output
    (failure,) = (json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines())
    assert (failure["video"], failure["rejected"]) == ("b.mp4", True)


def test_timelines_are_written_and_shown(triton: Triton, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    triton.logits = lambda frames: np.array([-5, 3, -5, -5], np.float32)
    output = tmp_path / "out"
    (clips / "text.mp4").write_bytes(videos.TEXT)
    options = ["--server", triton.address, "--output", output, "--timeline", "--format", "vtt, EAF", *IN_THREADS]
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 3, done.output
    assert sorted(path.name for path in output.iterdir()) == [
        "a.eaf", "a.vtt", "b.eaf", "b.vtt", "errors.jsonl", "journal.jsonl",
    ]  # fmt: skip
    assert "2 recognized; 1 failed" in done.out
    assert re.search(rf"a.mp4\s+1\s+0.4 s\s+{GLOSSES[1]}", done.out)
    (clips / "text.mp4").unlink()
    done = asl_triton(capsys, "batch", clips, *options, "--min-confidence", 0.99, "--json")
    summary = json.loads(done.out)
    assert done.code == 0 and summary["recognized"] == 2 and len(summary["files"]) == 4
    assert "-->" not in (output / "a.vtt").read_text()
    assert sorted(path.name for path in output.glob("[!j]*")) == ["a.eaf", "a.vtt", "b.eaf", "b.vtt"]


@pytest.mark.parametrize("wrong", ["text", "nothing"])
def test_batch_that_recognizes_nothing_exits_with_1(
    triton: Triton, tmp_path: Path, capsys: Capture, wrong: str
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    if wrong == "text":
        (folder / "text.mp4").write_bytes(videos.TEXT)
    done = asl_triton(capsys, "batch", folder, "--server", triton.address, "--output", tmp_path / "out", *IN_THREADS)
    assert done.code == 1
    assert ("1 failed" if wrong == "text" else "there is no video") in done.output


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--format", "xlsx"], 2, "xlsx is not one of txt, csv, jsonl, parquet"),
    (["--format", ","], 2, "nothing is not one of"),
    (["--format", "vtt"], 2, "vtt is not one of txt, csv, jsonl, parquet"),
    (["--timeline", "--format", "txt"], 2, "txt is not one of csv, jsonl, vtt, eaf"),
    (["--timeline", "--min-confidence", "0"], 2, "min_confidence is 0.0: for a timeline"),
    (["--timeline", "--top-k", "3"], 2, "a timeline has one gloss per segment"),
    (["--window", "32"], 2, "--window and --stride require --timeline"),
    (["--stride", "32"], 2, "--window and --stride require --timeline"),
    (["--timeline", "--window", "0"], 2, "window"),
    (["--top-k", "0"], 2, "top-k"),
    (["--min-confidence", "2"], 2, "min-confidence"),
    (["--min-confidence", "nan"], 2, "min-confidence"),
    (["--in-flight", "0"], 2, "in-flight"),
    (["--vocabulary", "nowhere.txt"], 1, "cannot read the labels nowhere.txt"),
    (["--tls-cert", "nowhere.pem"], 1, "needs both the certificate"),
    (["--api-key", "two words"], 1, "--api-key"),
    (["--server", "localhost"], 1, "use host:port"),
], ids=str)  # fmt: skip
def test_invalid_option_is_a_clear_error(
    clips: Path, tmp_path: Path, capsys: Capture, options: list[str], code: int, message: str
) -> None:
    done = asl_triton(capsys, "batch", clips, "--output", tmp_path / "out", *options)
    assert done.code == code
    assert message in done.output
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_name_that_the_terminal_cannot_show_does_not_end_the_batch(triton: Triton, clips: Path, tmp_path: Path) -> None:
    (clips / "a.mp4").rename(clips / "🤟.mp4")
    options = ["--server", triton.address, "--output", tmp_path / "out", *IN_THREADS]
    done = subprocess.run(
        [sys.executable, "-m", "asl_triton", "batch", clips, *options],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\U0001f91f.mp4" in done.stdout


def test_models_lists_the_served_models(triton: Triton, capsys: Capture) -> None:
    done = asl_triton(capsys, "models", "--server", triton.address, "--json")
    (model,) = json.loads(done.out)
    assert (model["name"], model["labels"], model["preset"]["name"], model["datatype"]) == (
        "signs",
        4,
        "wlasl",
        "UINT8",
    )
    assert "signs" in asl_triton(capsys, "models", "--server", triton.address).out
    assert asl_triton(capsys, "models", "--server", triton.address, "--labels").out.split() == list(GLOSSES)
    assert json.loads(asl_triton(capsys, "models", "--server", triton.address, "--labels", "--json").out) == [*GLOSSES]
    assert asl_triton(capsys, "models", "--server", triton.address, "--model", "nobody").code == 1


def test_models_fit_in_80_columns(triton: Triton, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (model,) = json.loads(asl_triton(capsys, "models", "--server", triton.address, "--json").out)
    shown = asl_triton(capsys, "models", "--server", triton.address).out
    (row,) = (line for line in shown.splitlines() if line.startswith("│"))
    assert len(row) <= 80
    for value in (model["name"], model["version"], model["preset"]["name"], model["precision"]):
        assert f" {value} " in row
    assert f"from checkpoint {model['checkpoint_sha256'][:12]}" in shown


def test_model_card_is_shown_by_every_command(triton: Triton, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    triton.card = ModelCard(purpose="four [signs]", caveat="an example", min_confidence=0.99)
    server = ("--server", triton.address)
    (model,) = json.loads(asl_triton(capsys, "models", *server, "--json").out)
    assert (model["purpose"], model["caveat"], model["min_confidence"]) == ("four [signs]", "an example", 0.99)
    card = "four [signs]; an example; answers below 99% are unsure"
    assert f"signs: {card}" in asl_triton(capsys, "models", *server).output

    checks = json.loads(asl_triton(capsys, "doctor", *server, "--json").out)
    assert checks["well"]
    (check,) = [check for check in checks["checks"] if check["name"] == "signs: purpose"]
    assert (check["state"], check["found"]) == ("warning", card) and "asl-triton fetch" in check["remedy"]

    done = asl_triton(capsys, "recognize", clips / "a.mp4", *server)
    assert "signs: four [signs]" in done.err
    assert "a.mp4 (unsure)" in done.output and "warning an example" in done.output
    line = json.loads(asl_triton(capsys, "recognize", clips / "a.mp4", *server, "--json").out)
    assert (line["unsure"], line["warnings"]) == (True, ["an example"])

    done = asl_triton(capsys, "batch", clips, *server, "--output", tmp_path / "out", *IN_THREADS)
    assert "signs: four [signs]" in done.err and "(unsure)" in done.out
    assert "warning a.mp4 and 1 more: an example" in done.output


@pytest.mark.parametrize("empty", [False, True])
def test_doctor_says_whether_all_is_well(triton: Triton, capsys: Capture, empty: bool, tmp_path: Path) -> None:
    triton.empty = empty
    options = ["--server", triton.address, "--repository", tmp_path]
    done = asl_triton(capsys, "doctor", *options)
    assert done.code == int(empty)
    assert ("pip install 'numpy<2'" in done.output) == empty
    checks = json.loads(asl_triton(capsys, "doctor", *options, "--json").out)
    assert checks["well"] != empty
    states = {check["name"]: check["state"] for check in checks["checks"]}
    assert states["signs: numpy" if empty else "signs: contract"] == ("failed" if empty else "ok")


def test_refusing_server_is_reported_with_a_remedy(
    triton: Triton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    triton.faults = [(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header")]
    done = asl_triton(capsys, "batch", clips, "--server", triton.address, "--output", tmp_path / "out")
    assert done.code == 1
    assert "refused the call" in done.output and "it requires an API key (--api-key)" in done.output


def test_rows_shown_are_the_first_by_name() -> None:
    predictions = (Prediction(1, "book", 0, 0.9, 2.0),)
    with ClipProgress(100) as progress:
        for n in reversed(range(100)):
            progress.advance(Recognition(f"{n:03}.mp4", "signs", predictions, False, 9, 0.4, 1, 0, 0))
        progress.advance(Failure("x.mp4", "empty"))
    assert [recognition.video for recognition in progress.shown] == [f"{n:03}.mp4" for n in range(ROWS_SHOWN)]
    assert (progress.done, progress.failed) == (101, 1)


def test_progress_moves_within_a_long_clip(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.0)
    with ClipProgress[Timeline](2) as progress:
        progress.move("film.mp4", 0.25)
        progress.advance(Timeline("film.mp4", "signs", (), 9, 0.4, 1, 0, 0))
        progress.move("other.mp4", 0.5)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("0/2 clips, 1 under way (25% read), ") and second.startswith("1/2 clips, ")
    assert third.startswith("1/2 clips, 1 under way (50% read), ")


def test_every_command_that_calls_a_server_has_the_same_options() -> None:
    shared = {"--tls", "--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name", "--api-key", "--timeout"}
    names = []
    for name, command in typer.main.get_group(app).commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        if "--server" in options:
            names.append(name)
            assert shared <= options, name
    assert {"batch", "doctor", "evaluate", "models"} <= set(names)
