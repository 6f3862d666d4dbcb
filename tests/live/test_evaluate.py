"""`evaluate` against a real Triton: its figures, files and messages, and common mistakes."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asl_triton.models.card import ModelCard
from asl_triton.models.repository import read_folder
from asl_triton.presets import PRESETS
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.command_line import CommandResult, asl_triton
from tests.live.conftest import write_clip
from tests.local_triton import serve
from tests.networks import GLOSSES, save_checkpoint, save_labels

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def gloss_folders(tmp_path: Path) -> Path:
    """Write four clips of three glosses. The small network cannot actually recognize them."""
    folder = tmp_path / "glosses"
    for number, name in enumerate(("book/a.mp4", "book/deeper/b.mp4", "drink/c.mp4", "thank you/d.mp4")):
        write_clip(folder / name, num_frames=12 + number, size=(64, 64), seed=number)
    return folder


def run_evaluate(capsys: Capture, triton: LocalTriton, data: Path, output: Path, *more: object) -> CommandResult:
    """Run `asl-triton evaluate DATA` on a server."""
    return asl_triton(capsys, "evaluate", data, "--server", triton.address, "--output", output, *more)


def read_document(output: Path) -> dict[str, Any]:
    """Read `evaluation.json`."""
    content: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return content


@pytest.fixture
def bundle(small_checkpoint: Path, tmp_path: Path) -> Path:
    """Write a bundle of the small network, with a purpose."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copyfile(small_checkpoint, folder / "weights.pt")
    save_labels(folder / "labels.txt")
    (folder / "card.json").write_text(ModelCard(purpose="seven signs").to_json())
    return folder


def test_threshold_is_written_to_the_bundle_and_exported(
    small_triton: LocalTriton, bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    confidences = []
    with Recognizer(small_triton.address) as recognizer:
        for number in range(5):
            clip = write_clip(tmp_path / "clips" / f"{number}.mp4", num_frames=12, size=(64, 64), seed=number)
            answer = recognizer.recognize(clip)
            assert answer.unsure is None
            confidences.append(answer.confidence)
            for copy in range(10):  # the folder is named after the answer, so the answer is right
                target = tmp_path / "data" / answer.gloss / f"{number}-{copy}.mp4"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(clip, target)
    done = run_evaluate(capsys, small_triton, tmp_path / "data", tmp_path / "out", "--write-threshold", bundle)
    assert done.code == 0, done.output
    expected = math.floor(100 * min(confidences)) / 100
    assert f"recommended threshold {expected:.0%}: 100.0% of the answers reach it" in done.output
    assert str(bundle / "card.json") in done.output and f"asl-triton export {bundle}" in done.output
    assert read_document(tmp_path / "out")["threshold"] == {"min_confidence": expected, "reached": 1.0, "accuracy": 1.0}
    assert open_bundle(bundle).card == ModelCard(purpose="seven signs", min_confidence=expected)

    assert asl_triton(capsys, "export", bundle, "--repository", tmp_path / "models").code == 0
    assert read_folder(tmp_path / "models" / "bundle").served.card.min_confidence == expected


def test_threshold_that_cannot_be_written_is_an_error(
    small_triton: LocalTriton, gloss_folders: Path, bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    done = run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "out", "--write-threshold", bundle)
    assert done.code == 1 and "4 clips were scored, and at least 50 are needed" in done.output
    assert (tmp_path / "out" / "evaluation.json").exists()
    assert open_bundle(bundle).card == ModelCard(purpose="seven signs")
    other = save_checkpoint(bundle / "weights.pt", seed=5)
    done = run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "no", "--write-threshold", bundle)
    assert done.code == 1 and "small was not exported from" in done.output
    for invalid_bundle, error in (
        (other, "name the bundle's folder"),
        (tmp_path / "nowhere", "there is no checkpoint"),
    ):
        done = run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "no", "--write-threshold", invalid_bundle)
        assert done.code == 1 and error in done.output
    # The error is found before any clip is recognized.
    assert not (tmp_path / "no").exists() or not list((tmp_path / "no").iterdir())


def test_figures_match_recognizing_each_clip(
    small_triton: LocalTriton, gloss_folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    done = run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "out", "--in-flight", 3)
    assert done.code == 0, done.output
    ranks, confidences = [], []
    with Recognizer(small_triton.address) as recognizer:
        for path in sorted(gloss_folders.rglob("*.mp4")):
            recognition = recognizer.recognize(path, top_k=len(GLOSSES))
            gloss = path.relative_to(gloss_folders).parts[0]
            ranks.append(next(p.rank for p in recognition.predictions if p.gloss == gloss))
            confidences.append(recognition.confidence)
    found = read_document(tmp_path / "out")
    assert [a["video"] for a in found["answers"]] == [
        "book/a.mp4",
        "book/deeper/b.mp4",
        "drink/c.mp4",
        "thank you/d.mp4",
    ]
    assert [a["rank"] for a in found["answers"]] == ranks
    assert [a["confidence"] for a in found["answers"]] == pytest.approx(confidences)
    assert found["per_instance"]["top1"] == sum(rank == 1 for rank in ranks) / 4
    assert found["per_instance"]["top5"] == sum(rank <= 5 for rank in ranks) / 4
    assert (found["clips"], found["classes"], found["vocabulary"], found["failed"]) == (4, 3, 7, 0)
    assert found["model"]["preset"] == "wlasl" and len(found["model"]["checkpoint_sha256"]) == 64
    assert "4 clips of 3 of 7 glosses scored" in done.output
    assert (tmp_path / "out" / "evaluation.html").read_text().startswith("<!doctype html>")


def test_json_output_is_the_written_document(
    small_triton: LocalTriton, gloss_folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    done = run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "out", "--json")
    assert done.code == 0
    assert json.loads(done.out) == read_document(tmp_path / "out")


def test_merging_every_gloss_makes_every_answer_right(
    small_triton: LocalTriton, gloss_folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    merge = tmp_path / "merge.txt"
    merge.write_text(", ".join(GLOSSES) + "\n")
    done = run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "out", "--merge", merge)
    assert done.code == 0, done.output
    found = read_document(tmp_path / "out")
    assert found["per_instance"]["top1"] == 1 and found["vocabulary"] == 1
    assert found["merged"] == [" / ".join(GLOSSES)]


def test_broken_clips_are_reported_and_others_scored(
    small_triton: LocalTriton, gloss_folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    for broken in ("home/only.mp4", "book/text.mp4"):
        (gloss_folders / broken).parent.mkdir(exist_ok=True)
        (gloss_folders / broken).write_text("this is no video")
    (gloss_folders / "empty").mkdir()
    write_clip(gloss_folders / "Book" / "e.mp4", num_frames=9, size=(64, 64))
    write_clip(gloss_folders / "zebra" / "f.mp4", num_frames=9, size=(64, 64))
    done = run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "out")
    assert done.code == 3
    found = read_document(tmp_path / "out")
    assert [failure["video"] for failure in found["failures"]] == ["book/text.mp4", "home/only.mp4"]
    assert "home" not in {row["gloss"] for row in found["by_class"]}
    assert found["unknown_glosses"] == ["zebra"]
    assert "failed home/only.mp4: home/only.mp4 cannot be read as a video" in done.output
    assert "1 gloss folder has no video: empty" in done.output
    assert "Book, book differ only by case" in done.output
    assert "5 clips of 3 of 7 glosses scored, 2 failed" in done.output


def test_only_broken_clips_is_an_error(small_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "data" / "book").mkdir(parents=True)
    (tmp_path / "data" / "book" / "a.mp4").touch()
    done = run_evaluate(capsys, small_triton, tmp_path / "data", tmp_path / "out")
    assert done.code == 1
    assert "none of the 1 clips could be read. The first error: book/a.mp4 is empty" in done.output
    assert not (tmp_path / "out").exists()


def test_one_clip_is_enough(small_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    write_clip(tmp_path / "data" / "book" / "a.mp4", num_frames=9, size=(64, 64))
    done = run_evaluate(capsys, small_triton, tmp_path / "data", tmp_path / "out")
    assert done.code == 0
    assert "NaN" not in (tmp_path / "out" / "evaluation.json").read_text()


def test_unusable_data_is_an_error(
    small_triton: LocalTriton, gloss_folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    split, other, text = tmp_path / "split.json", tmp_path / "other.json", tmp_path / "text.json"
    split.write_text('{"1": {"subset": "test", "action": [0, 1, -1]}}')
    other.write_text('{"1": {"subset": "test", "action": [1999, 1, -1]}}')
    text.write_text("no json")
    (tmp_path / "none").mkdir()
    for data, more, error in (
        (tmp_path / "nowhere", [], "name a folder with one subfolder per gloss, or a data set"),
        (tmp_path / "none", [], "needs one subfolder of clips per gloss"),
        (gloss_folders / "book", [], "from another vocabulary"),
        (gloss_folders, ["--subset", "test"], "--subset is only for data sets"),
        (gloss_folders, ["--merge", text], "is alone"),
        (text, [], "is not JSON"),
        (other, ["--videos", gloss_folders], "has 1 in class 1999, but there are labels for only 7"),
        (split, ["--videos", gloss_folders], "none of the 1 videos"),
        (split, [], "Name their folder with --videos"),
        (split, ["--subset", "dev"], "no video in the subset 'dev'"),
    ):
        done = run_evaluate(capsys, small_triton, data, tmp_path / "out", *more)
        assert (done.code, error in done.output) == (1, True), done.output
    assert run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "out", "--in-flight", 0).code == 2


def test_unwritable_output_is_an_error(
    small_triton: LocalTriton, gloss_folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").touch()
    done = run_evaluate(capsys, small_triton, gloss_folders, tmp_path / "file" / "out")
    assert done.code == 1
    assert "cannot write" in done.output


def count_answered_requests(triton: LocalTriton) -> int:
    """Count the requests that the model has answered."""
    with urllib.request.urlopen(f"http://{triton.http_address}/v2/models/small/stats", timeout=60) as answer:
        return int(json.load(answer)["model_stats"][0]["inference_stats"]["success"]["count"])


def test_killed_server_leaves_partial_results(small_repository: Path, tmp_path: Path) -> None:
    first = write_clip(tmp_path / "data" / "book" / "000.mp4", num_frames=40, size=(128, 128))
    for number in range(1, 400):
        os.link(first, first.with_name(f"{number:03}.mp4"))
    with LocalTriton(small_repository) as triton:
        command = [sys.executable, "-m", "asl_triton", "evaluate", tmp_path / "data", "--server", triton.address]
        command += ["--output", tmp_path / "out"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            while running.poll() is None and count_answered_requests(triton) < 12:
                time.sleep(0.05)
            triton.stop()
            printed = running.communicate(timeout=120)[0]
    assert running.returncode == 3, printed
    assert "stopped before the end: the server went away" in " ".join(printed.split())
    found = read_document(tmp_path / "out")
    assert found["clips"] + found["failed"] + found["not_tried"] == 400
    assert found["not_tried"] > 0 and found["failed"] < 10


@pytest.fixture(scope="module")
def hundred_triton(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve a small network with the labels of WLASL-100."""
    lines = (shared_folder / "wlasl" / "wlasl_class_list.txt").read_text().splitlines()
    labels = tuple(line.split("\t")[1] for line in lines[:100])
    folder = tmp_path_factory.mktemp("hundred")
    checkpoint = load_checkpoint(save_checkpoint(folder / "hundred.pt", num_classes=100))
    export_model(checkpoint, labels, PRESETS["wlasl"], folder / "models", "hundred")
    with serve(folder / "models") as triton:
        yield triton


def test_official_split_scores_two_available_videos_and_reports_2036_missing(
    hundred_triton: LocalTriton, shared_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    done = run_evaluate(capsys, hundred_triton, shared_folder / "wlasl" / "nslt_100.json", tmp_path / "out")
    assert done.code == 0, done.output
    assert "2 clips of 1 of 100 glosses scored, 2,036 missing" in done.output
    assert "2 of train are in subsets that published checkpoints were trained on" in done.output
    found = read_document(tmp_path / "out")
    assert (found["clips"], found["missing"], len(found["missing_videos"])) == (2, 2036, 2036)
    assert {a["gloss"] for a in found["answers"]} == {"book"}
    assert "2,036 videos" in (tmp_path / "out" / "evaluation.html").read_text()


def test_subset_without_videos_is_an_error(
    hundred_triton: LocalTriton, shared_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    split = shared_folder / "wlasl" / "nslt_100.json"
    done = run_evaluate(capsys, hundred_triton, split, tmp_path / "out", "--subset", "test")
    assert done.code == 1
    assert "none of the 258 videos" in done.output
    done = run_evaluate(capsys, hundred_triton, split.with_name("nslt_2000.json"), tmp_path / "out")
    assert done.code == 1
    assert "from another vocabulary" in done.output
