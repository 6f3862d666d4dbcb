"""Video files sent instead of frames to a real server: same answers and same errors."""

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
    """Return a sign, a clip of three frames, a truncated clip, and one too long for a single request."""
    folder = tmp_path_factory.mktemp("signed")
    whole = faststart(folder / "fast.mp4", clip(folder / "whole.mp4", 40, size="320x240"))
    return [
        *render_demo(folder, ("mother",), (3_000_004,)),
        write_clip(folder / "short.mp4", 3),
        cut(folder / "half.mp4", whole, 0.6),
        write_clip(folder / "long.mp4", 310, (60, 80)),
    ]


def check_same(sent: Recognition, ours: Recognition) -> None:
    """Check that two answers differ only in timing."""
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
def test_video_and_frames_give_the_same_answer(preset_triton: LocalTriton, signed: list[Path], model: str) -> None:
    glosses = [f"gloss {number}" for number in range(0, 20, 2)]
    other_options = {"top_k": 4, "vocabulary": glosses, "min_confidence": 0.999}
    cases = [*((path, {}) for path in signed if model == "wlasl" or path.stem != "long"), (signed[0], other_options)]
    with Recognizer(preset_triton.address, model=model) as recognizer:
        frames = [recognizer.recognize(path, **options) for path, options in cases]
    assert any("cut off" in warning for answer in frames for warning in answer.warnings)
    sends: tuple[Send, ...] = ("video", "auto")
    for send in sends:
        with Recognizer(preset_triton.address, model=model, send=send) as recognizer:
            for (path, options), ours in zip(cases, frames, strict=True):
                check_same(recognizer.recognize(path, **options), ours)


def count_requests(triton: LocalTriton, model: str) -> int:
    """Count the requests that a model has answered or refused."""
    statistics = asked(triton.address, lambda transport: transport.statistics(model))
    return statistics.requests + statistics.failures


def test_batch_writes_the_same_for_video_and_frames(demo_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "clips"
    render_demo(folder, ("book", "mother"), (3_000_005,))
    (folder / "letter.mp4").write_text("Dear Sir or Madam")
    (folder / "nothing.mp4").touch()
    before = count_requests(demo_triton, "recognize_sign")
    written = {}
    for send in ("frames", "video"):
        output = tmp_path / send
        arguments = ["--server", demo_triton.address, "--format", "csv,jsonl", "--output", output, "--send", send]
        done = asl_triton(capsys, "batch", folder, *arguments)
        assert done.code == 3, done.output
        recognitions = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
        answers = [
            (r["video"], [(p["gloss"], round(p["confidence"], 5)) for p in r["predictions"]]) for r in recognitions
        ]
        errors = [json.loads(line) for line in (output / "errors.jsonl").read_text().splitlines()]
        written[send] = sorted(answers), sorted(errors, key=lambda error: str(error["video"]))
    assert len(written["frames"][0]) == 2 and len(written["frames"][1]) == 2
    assert [error["error"].split()[0] for error in written["frames"][1]] == ["letter.mp4", "nothing.mp4"]
    assert written["video"] == written["frames"]
    assert count_requests(demo_triton, "recognize_sign") == before + 4


def test_local_server_accepts_videos(small_repository: Path, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--local", "--repository", small_repository, "--output", tmp_path / "out", "--send", "video"]
    done = asl_triton(capsys, "batch", clips, *arguments)
    assert done.code == 0, done.output
    assert "3 recognized" in done.output


def test_server_without_recognize_sign_gets_frames_or_an_error(
    small_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["--server", small_triton.address, "--output", tmp_path / "out"]
    refused = asl_triton(capsys, "batch", clips, *arguments, "--send", "video")
    assert refused.code == 1
    assert f"{small_triton.address} does not serve recognize_sign" in refused.output
    assert "send frames (--send frames), or serve it" in refused.output
    done = asl_triton(capsys, "batch", clips, *arguments, "--send", "auto")
    assert done.code == 0, done.output


def test_timeline_from_videos_is_a_usage_error(clips: Path, capsys: Capture) -> None:
    refused = asl_triton(capsys, "batch", clips, "--timeline", "--send", "video", "--format", "csv")
    assert refused.code == 2
    assert "timelines are made from frames" in refused.output
