"""Files in place of frames, to a real server: the same answers, the same sentences."""

import json
from pathlib import Path

import pytest

from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.recognizer.upload import Send
from asl_triton.results import Recognition
from asl_triton_demo.signer import render_demo
from asl_triton_deploy.local import LocalTriton
from tests.client.asking import asked
from tests.client.videos import clip, cut, faststart
from tests.command_line import asl_triton
from tests.live.conftest import write_clip

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A sign, a clip of three frames, one that is cut off, and one longer than any request carries."""
    folder = tmp_path_factory.mktemp("signed")
    whole = faststart(folder / "fast.mp4", clip(folder / "whole.mp4", 40, size="320x240"))
    return [
        *render_demo(folder, ("mother",), (3_000_004,)),
        write_clip(folder / "short.mp4", 3),
        cut(folder / "half.mp4", whole, 0.6),
        write_clip(folder / "long.mp4", 310, (60, 80)),
    ]


def same(sent: Recognition, ours: Recognition) -> None:
    """Whether two answers differ in nothing but the time that they took."""
    assert [(p.rank, p.gloss, p.class_id) for p in sent.predictions] == [
        (p.rank, p.gloss, p.class_id) for p in ours.predictions
    ]
    confidences = [p.confidence for p in ours.predictions]
    assert [p.confidence for p in sent.predictions] == pytest.approx(confidences, abs=1e-6)
    assert [p.logit for p in sent.predictions] == pytest.approx([p.logit for p in ours.predictions], abs=1e-4)
    assert sent.duration_s == pytest.approx(ours.duration_s)
    for name in ("video", "model", "unsure", "num_frames", "num_windows", "warnings"):
        assert getattr(sent, name) == getattr(ours, name), name


@pytest.mark.parametrize("model", ["wlasl", "bsl1k"])
def test_answer_is_that_of_frames(preset_triton: LocalTriton, signed: list[Path], model: str) -> None:
    glosses = [f"gloss {number}" for number in range(0, 20, 2)]
    wishes = {"top_k": 4, "vocabulary": glosses, "min_confidence": 0.999}
    asked_about = [*((path, {}) for path in signed if model == "wlasl" or path.stem != "long"), (signed[0], wishes)]
    with Recognizer(preset_triton.address, model=model) as recognizer:
        frames = [recognizer.recognize(path, **options) for path, options in asked_about]
    assert any("cut off" in warning for answer in frames for warning in answer.warnings)
    sends: tuple[Send, ...] = ("video", "auto")
    for send in sends:
        with Recognizer(preset_triton.address, model=model, send=send) as recognizer:
            for (path, options), ours in zip(asked_about, frames, strict=True):
                same(recognizer.recognize(path, **options), ours)


def requests_of(triton: LocalTriton, model: str) -> int:
    """How many requests a model has answered or refused."""
    told = asked(triton.address, lambda transport: transport.statistics(model))
    return told.requests + told.failures


def test_batch_writes_the_same_whatever_is_sent(demo_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "clips"
    render_demo(folder, ("book", "mother"), (3_000_005,))
    (folder / "letter.mp4").write_text("Dear Sir or Madam")
    (folder / "nothing.mp4").touch()
    before = requests_of(demo_triton, "recognize_sign")
    written = {}
    for send in ("frames", "video"):
        output = tmp_path / send
        arguments = ["--server", demo_triton.address, "--format", "csv,jsonl", "--output", output, "--send", send]
        done = asl_triton(capsys, "batch", folder, *arguments)
        assert done.code == 3, done.told
        recognitions = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
        answers = [
            (r["video"], [(p["gloss"], round(p["confidence"], 5)) for p in r["predictions"]]) for r in recognitions
        ]
        errors = [json.loads(line) for line in (output / "errors.jsonl").read_text().splitlines()]
        written[send] = sorted(answers), sorted(errors, key=lambda error: str(error["video"]))
    assert len(written["frames"][0]) == 2 and len(written["frames"][1]) == 2
    assert [error["error"].split()[0] for error in written["frames"][1]] == ["letter.mp4", "nothing.mp4"]
    assert written["video"] == written["frames"]
    assert requests_of(demo_triton, "recognize_sign") == before + 4


def test_local_server_takes_files_where_they_are_sent(
    small_repository: Path, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["--local", "--repository", small_repository, "--output", tmp_path / "out", "--send", "video"]
    done = asl_triton(capsys, "batch", clips, *arguments)
    assert done.code == 0, done.told
    assert "3 recognized" in done.told


def test_server_without_recognize_sign_gets_frames_or_says_what_to_do(
    small_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["--server", small_triton.address, "--output", tmp_path / "out"]
    refused = asl_triton(capsys, "batch", clips, *arguments, "--send", "video")
    assert refused.code == 1
    assert f"{small_triton.address} does not serve recognize_sign" in refused.told
    assert "send frames (--send frames), or serve it" in refused.told
    done = asl_triton(capsys, "batch", clips, *arguments, "--send", "auto")
    assert done.code == 0, done.told


def test_timeline_of_files_is_wrong_usage(clips: Path, capsys: Capture) -> None:
    refused = asl_triton(capsys, "batch", clips, "--timeline", "--send", "video", "--format", "csv")
    assert refused.code == 2
    assert "timelines are made from frames" in refused.told
