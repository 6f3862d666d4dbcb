"""The signer's box through a real Triton: one per shot of a film, live frames, and given boxes."""

import json
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from asl_triton.live.recognizer import LiveSession
from asl_triton.live.rules import LiveRules
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.results import SignerBox, Timeline
from asl_triton.video.reader import open_video
from asl_triton_demo.signer import RenderedClip, find_sign, render, write_video
from asl_triton_deploy.local import LocalTriton
from tests.benchmarks.film import FPS, paint_scene, perform_pause, perform_sign
from tests.client.signer.test_signer import overlap
from tests.client.streams import wait_until
from tests.command_line import asl_triton

Capture = pytest.CaptureFixture[str]
SIZE = (720, 1280)  # (H, W) of the films
SIDE = 252  # pixels: the height and width of the signer's picture in them
# Seed of the signer, position in the frame, and glosses. The face detector finds these two animated faces.
SCENES = ((1_400_100, (860, 340), ("book", "hello")), (1_400_105, (90, 260), ("drink", "mother")))
BOX = (860 / 1280, 340 / 720, (860 + SIDE) / 1280, (340 + SIDE) / 720)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a film of two 1280 x 720 shots, each with a small signer."""
    path = tmp_path_factory.mktemp("boxes") / "film.mp4"
    writer = imageio_ffmpeg.write_frames(str(path), SIZE[::-1], fps=FPS, codec="libx264", macro_block_size=1)
    writer.send(None)
    for seed, (left, top), glosses in SCENES:
        wall = np.full((*SIZE, 3), (205, 190, 180) if left > 640 else (90, 120, 140), np.uint8)
        parts = [perform_pause(1.0, seed)]
        for gloss in glosses:
            parts += [perform_sign(find_sign(gloss), seed), perform_pause(1.2, seed)]
        for image in paint_scene(parts, seed):
            frame = wall.copy()
            frame[top : top + SIDE, left : left + SIDE] = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            writer.send(frame)
    writer.close()
    return path


@pytest.fixture(scope="module")
def timeline(demo_triton: LocalTriton, film: Path) -> Timeline:
    with Recognizer(demo_triton.address) as recognizer:
        return recognizer.timeline(film)


def test_each_shot_of_a_film_gets_its_own_box(timeline: Timeline) -> None:
    assert [segment.gloss for segment in timeline.segments] == ["book", "hello", "drink", "mother"]
    assert len(timeline.signers) == 2
    for shot, (_, (left, top), _) in zip(timeline.signers, SCENES, strict=True):
        picture = (left / SIZE[1], top / SIZE[0], (left + SIDE) / SIZE[1], (top + SIDE) / SIZE[0])
        assert shot.box is not None and shot.box.source == "face"
        assert overlap((shot.box.x0, shot.box.y0, shot.box.x1, shot.box.y1), picture) > 0.4
    assert not any("signer was found" in warning or "people are" in warning for warning in timeline.warnings)


def test_signs_are_missed_in_whole_frames(demo_triton: LocalTriton, film: Path) -> None:
    with Recognizer(demo_triton.address, find_signer=False) as recognizer:
        whole = recognizer.timeline(film)
    assert whole.signers == ()
    assert [segment.gloss for segment in whole.segments] != ["book", "hello", "drink", "mother"]


def test_threads_and_processes_give_the_same_timeline(demo_triton: LocalTriton, film: Path, timeline: Timeline) -> None:
    with Recognizer(demo_triton.address, decoding="threads") as recognizer:
        found = recognizer.timeline(film)
    assert (found.segments, found.signers, found.warnings) == (timeline.segments, timeline.signers, timeline.warnings)


def test_batch_writes_the_box_of_each_segment_and_resumes(
    demo_triton: LocalTriton, film: Path, timeline: Timeline, tmp_path: Path, capsys: Capture
) -> None:
    options = ["--server", demo_triton.address, "--output", tmp_path, "--timeline", "--format", "csv,jsonl"]
    assert asl_triton(capsys, "batch", film, *options).code == 0
    rows = [json.loads(line) for line in (tmp_path / "film.jsonl").read_text().splitlines()]
    assert [row["gloss"] for row in rows] == [segment.gloss for segment in timeline.segments]
    boxes = [shot.box for shot in timeline.signers]
    for row, box in zip(rows, (boxes[0], boxes[0], boxes[1], boxes[1]), strict=True):
        assert box is not None
        assert row["signer"] == {
            "box": [box.x0, box.y0, box.x1, box.y1],
            "source": "face",
            "confidence": box.confidence,
        }
    assert "signer" not in (tmp_path / "film.csv").read_text().splitlines()[0]
    (tmp_path / "film.jsonl").rename(tmp_path / "before.jsonl")
    assert asl_triton(capsys, "batch", film, *options).code == 0  # from the journal
    assert (tmp_path / "film.jsonl").read_text() == (tmp_path / "before.jsonl").read_text()
    assert asl_triton(capsys, "batch", film, *options, "--signer", "off").code == 0  # other settings, so not resumed
    whole = [json.loads(line) for line in (tmp_path / "film.jsonl").read_text().splitlines()]
    assert whole != rows and not any("signer" in row for row in whole)


def test_given_box_applies_to_the_whole_film(demo_triton: LocalTriton, film: Path) -> None:
    with Recognizer(demo_triton.address, signer=SignerBox(*BOX)) as recognizer:
        found = recognizer.timeline(film)
    assert [segment.gloss for segment in found.segments][:2] == ["book", "hello"]
    assert {shot.box and shot.box.source for shot in found.signers} == {"caller"}


def test_live_box_follows_the_signer_across_a_cut(demo_triton: LocalTriton, film: Path) -> None:
    boxes = []
    with Recognizer(demo_triton.address) as recognizer:
        session = LiveSession(recognizer, LiveRules(stride_frames=16), guides=True)
        with session, open_video(film) as video:
            wait_until(lambda: session.state().model is not None, 60)
            for frame in video:
                box = session.feed(frame.image, frame.time_s).signer
                if not boxes or box != boxes[-1]:
                    boxes.append(box)
            assert session.state().advice == "move closer"
    assert boxes[0] is None and len(boxes) == 3
    for box, (_, (left, top), _) in zip(boxes[1:], SCENES, strict=True):
        picture = (left / SIZE[1], top / SIZE[0], (left + SIDE) / SIZE[1], (top + SIDE) / SIZE[0])
        assert box is not None and overlap((box.x0, box.y0, box.x1, box.y1), picture) > 0.4


def test_watch_reports_the_signer_box(demo_triton: LocalTriton, film: Path, capsys: Capture) -> None:
    options = ["--server", demo_triton.address, "--stride", 16, "--json"]
    events = [json.loads(line) for line in asl_triton(capsys, "watch", film, *options).out.splitlines()]
    found = [event["signer"] for event in events if event["event"] == "signer"]
    assert len(found) == 2 and all(box["source"] == "face" for box in found)
    off = asl_triton(capsys, "watch", film, *options, "--signer", "off").out.splitlines()
    assert not [line for line in off if json.loads(line)["event"] == "signer"]


def test_frames_and_video_give_the_same_answer_with_the_same_box(demo_triton: LocalTriton, tmp_path: Path) -> None:
    clip = render("book", 3_000_000, size=(256, 256), num_frames=64, fps=25.0)
    frames = np.full((len(clip.frames), *SIZE, 3), (205, 190, 180), np.uint8)
    for small, frame in zip(clip.frames, frames, strict=True):
        frame[340 : 340 + SIDE, 860 : 860 + SIDE] = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    path = tmp_path / "small.mp4"
    write_video(RenderedClip(frames, clip.fps, clip.gloss, clip.seed), path)
    answers = []
    for send in ("frames", "video"):
        with Recognizer(demo_triton.address, send=send, signer=SignerBox(*BOX)) as recognizer:  # type: ignore[arg-type]
            answers.append(recognizer.recognize(path))
    assert answers[0].gloss == answers[1].gloss == "book"
    assert answers[0].signer is not None and answers[0].signer.source == "caller"
    assert answers[0].signer.x0 == pytest.approx(answers[1].signer.x0, abs=1e-6)  # type: ignore[union-attr]
    assert answers[0].confidence == pytest.approx(answers[1].confidence, abs=1e-5)
    whole = []
    for send in ("frames", "video"):  # --signer off
        with Recognizer(demo_triton.address, send=send, find_signer=False) as recognizer:  # type: ignore[arg-type]
            whole.append(recognizer.recognize(path))
    assert whole[0].signer is None and whole[1].signer is None
    assert whole[0].gloss == whole[1].gloss != "book"
    assert whole[0].confidence == pytest.approx(whole[1].confidence, abs=1e-5)
