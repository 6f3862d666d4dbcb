"""Signs taught through a real Triton and recognized right away."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asl_triton.cli.app import app
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton_deploy.local import LocalTriton
from tests.benchmarks.new_signs import FIRST_HELD_OUT_SEED, FIRST_SEED, NEW_SIGNS, render_glosses
from tests.client import videos
from tests.command_line import asl_triton

SIGNS = [sign for sign in NEW_SIGNS if sign.gloss in ("cat", "cold", "deaf")]
UNTAUGHT = [sign for sign in NEW_SIGNS if sign.gloss == "water"]


@pytest.fixture(scope="module")
def taught_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render three clips each of three signs that the demo checkpoint does not know."""
    folder = tmp_path_factory.mktemp("taught")
    render_glosses(folder, SIGNS, range(FIRST_SEED, FIRST_SEED + 3))
    return folder


@pytest.fixture(scope="module")
def held_out_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render one clip each of the same signs by other signers, and of one sign that was not taught."""
    folder = tmp_path_factory.mktemp("held-out")
    render_glosses(folder, SIGNS + UNTAUGHT, range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 1))
    return folder


@pytest.fixture(scope="module")
def dictionary(taught_clips: Path, demo_triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the dictionary that `teach` writes for them."""
    path = tmp_path_factory.mktemp("dictionary") / "mine.safetensors"
    options = ["--dictionary", str(path), "--server", demo_triton.address]
    done = CliRunner().invoke(app, ["teach", str(taught_clips), *options])
    assert done.exit_code == 0, done.output
    return path


def test_taught_signs_are_recognized_and_others_are_unsure(
    capsys: pytest.CaptureFixture[str], dictionary: Path, held_out_clips: Path, demo_triton: LocalTriton
) -> None:
    clips = sorted(held_out_clips.rglob("*.mp4"))
    options = ("--dictionary", dictionary, "--server", demo_triton.address, "--json")
    done = asl_triton(capsys, "recognize", *clips, *options)
    answers = [json.loads(line) for line in done.out.splitlines()]
    best = {Path(answer["video"]).parent.name: answer for answer in answers}
    for sign in SIGNS:
        assert best[sign.gloss]["predictions"][0]["gloss"] == sign.gloss and best[sign.gloss]["unsure"] is False
    assert best["water"]["unsure"] is True


def test_batch_and_evaluate_use_the_dictionary(
    capsys: pytest.CaptureFixture[str], dictionary: Path, held_out_clips: Path, demo_triton: LocalTriton, tmp_path: Path
) -> None:
    options = ("--dictionary", dictionary, "--server", demo_triton.address)
    output = tmp_path / "results"
    assert asl_triton(capsys, "batch", held_out_clips, "--output", output, "--format", "jsonl", *options).code == 0
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert {row["predictions"][0]["gloss"] for row in rows if "water" not in row["video"]} == {"cat", "cold", "deaf"}
    again = asl_triton(capsys, "batch", held_out_clips, "--output", output, "--format", "jsonl", *options)
    assert "4 of them in an earlier run" in again.output
    known = tmp_path / "known"
    shutil.copytree(held_out_clips, known, ignore=shutil.ignore_patterns("water"))
    done = asl_triton(capsys, "evaluate", known, "--output", tmp_path / "report", "--json", *options)
    assert done.code == 0 and "1.0" in done.out


def test_taught_signs_compete_with_the_models_vocabulary(
    capsys: pytest.CaptureFixture[str], dictionary: Path, held_out_clips: Path, demo_triton: LocalTriton
) -> None:
    clip = next((held_out_clips / "cat").iterdir())
    options = ("--dictionary", dictionary, "--with-vocabulary", "--server", demo_triton.address, "--json")
    answer = json.loads(asl_triton(capsys, "recognize", clip, "--top-k", 23, *options).out)
    assert answer["predictions"][0]["gloss"] == "cat" and len(answer["predictions"]) == 23


def test_rerun_adds_only_new_clips(
    capsys: pytest.CaptureFixture[str], dictionary: Path, taught_clips: Path, demo_triton: LocalTriton, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    shutil.copy(dictionary, path)
    options = ("--dictionary", path, "--server", demo_triton.address, "--json")
    summary = json.loads(asl_triton(capsys, "teach", taught_clips, *options).out)
    assert [sign["examples"] for sign in summary["signs"]] == [3, 3, 3] and summary["failures"] == []
    more = tmp_path / "more"
    for sign in ("cat", "dog"):
        (more / sign).mkdir(parents=True)
        shutil.copy(next((taught_clips / "deaf").iterdir()), more / sign / "deaf.mp4")
    (more / "cat" / "broken.mp4").write_bytes(videos.TEXT)
    done = asl_triton(capsys, "teach", more, *options)
    assert done.code == 1 and len(SignDictionary.load(path).examples) == 9
    errors = " ".join(failure["error"] for failure in json.loads(done.out)["failures"])
    assert "is an example of 'deaf' already, so it cannot be one of 'cat'" in errors and "broken.mp4" in errors


def test_signs_are_listed_and_removed_without_a_server(
    capsys: pytest.CaptureFixture[str], dictionary: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    shutil.copy(dictionary, path)
    done = asl_triton(capsys, "teach", "--dictionary", path, "--forget", "cold")
    assert done.code == 0 and "2 signs with 6 examples" in done.output and "cold" not in done.output
    assert asl_triton(capsys, "teach", "--dictionary", path, "--forget", "cold").code == 1
    assert SignDictionary.load(path).glosses == ("cat", "deaf")
    merged = asl_triton(capsys, "teach", "--dictionary", path, "--merge", dictionary)
    assert "3 signs with 9 examples" in merged.output


def test_mistakes_are_explained(
    capsys: pytest.CaptureFixture[str], dictionary: Path, taught_clips: Path, demo_triton: LocalTriton, tmp_path: Path
) -> None:
    server = ("--server", demo_triton.address)
    missing = asl_triton(capsys, "teach", "--dictionary", tmp_path / "no.safetensors")
    assert missing.code == 1 and "does not exist: to create it" in missing.output
    unsorted = asl_triton(capsys, "teach", taught_clips / "cat", "--dictionary", tmp_path / "no.safetensors", *server)
    assert unsorted.code == 1 and "is not in a sign's folder" in unsorted.output
    clip = next((taught_clips / "cat").iterdir())
    uploaded = asl_triton(capsys, "recognize", clip, "--dictionary", dictionary, "--send", "video", *server)
    assert uploaded.code == 1 and "does not know taught signs" in uploaded.output
    alone = asl_triton(capsys, "recognize", clip, "--with-vocabulary", *server)
    assert alone.code == 2 and "it requires --dictionary" in alone.output
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(dictionary.read_bytes()[:1000])
    done = asl_triton(capsys, "recognize", clip, "--dictionary", damaged, *server)
    assert done.code == 1 and "not a dictionary of signs, or is damaged" in done.output


def test_model_exported_with_a_dictionary_serves_old_and_new_signs(
    capsys: pytest.CaptureFixture[str], dictionary: Path, held_out_clips: Path, demo_triton: LocalTriton, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    done = asl_triton(capsys, "export", "demo", "--dictionary", dictionary, "--name", "mine", "--repository", models)
    assert done.code == 0 and "With 3 taught signs" in done.output
    clip = next((held_out_clips / "cat").iterdir())
    answers = []
    with LocalTriton(models, recognize_sign=True) as triton:
        for server, options in (
            (demo_triton, ("--dictionary", dictionary, "--with-vocabulary")),
            (triton, ()),
            (triton, ("--send", "video")),
        ):
            done = asl_triton(capsys, "recognize", clip, "--server", server.address, "--top-k", 23, "--json", *options)
            answers.append(json.loads(done.out))
    taught, *served = answers
    for answer in served:
        assert answer["unsure"] is taught["unsure"] is False
        for one, other in zip(answer["predictions"], taught["predictions"], strict=True):
            assert one["gloss"] == other["gloss"] and one["confidence"] == pytest.approx(other["confidence"], abs=2e-3)
