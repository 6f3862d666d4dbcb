"""Real video files through the library, the command and the server: same frames, warnings and signs."""

import json
import shutil
from pathlib import Path

import pytest

from asl_triton import Recognizer
from asl_triton_demo.signer import render, write_video
from asl_triton_demo.signs import SIGNS
from asl_triton_deploy.local import LocalTriton
from tests.client.videos import ffmpeg
from tests.command_line import asl_triton
from tests.live.sign_client import Answer, ask

ZOO = {  # frames and lost frames
    "good.mp4": (77, 0), "bad_zero.mp4": (76, 1), "mjpeg_422_420.avi": (40, 0), "mjd_3840x2160.avi": (3, 0),
    "hflip.mp4": (77, 0), "tagged3.mp4": (77, 0), "late.mp4": (77, 0), "nodef.webm": (385, 0),
    "dup_times.webm": (433, 0), "h265_nokey.mkv": (516, 99), "film_damaged_faststart.mp4": (432, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_library_command_and_server_agree(
    quick_triton: LocalTriton, shared_folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared_folder / "zoo" / name
    with Recognizer(quick_triton.address) as recognizer:
        ours = recognizer.recognize(path)
    assert (ours.num_frames, ours.lost_frames) == ZOO[name]
    assert bool(ours.warnings) == bool(ours.lost_frames)

    served = ask(quick_triton.address, path.read_bytes())
    assert isinstance(served, Answer)
    assert served.glosses == tuple(prediction.gloss for prediction in ours.predictions)
    details = served.details
    assert (details["num_frames"], details["lost_frames"]) == ZOO[name]
    assert tuple(details["warnings"]) == ours.warnings

    (tmp_path / "clips").mkdir()
    shutil.copy(path, tmp_path / "clips")
    (tmp_path / "clips" / "notes.txt").touch()
    words = (tmp_path / "clips", "--server", quick_triton.address, "--output", tmp_path / "out", "--format", "jsonl")
    done = asl_triton(capsys, "batch", *words)
    assert done.code == 0
    assert all(warning in done.output for warning in ours.warnings)
    assert "skipped 1 file without a video extension (use --glob to include others): notes.txt" in done.output
    line = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert (line["num_frames"], line.get("lost_frames", 0), tuple(line["warnings"])) == (*ZOO[name], ours.warnings)
    assert [row["gloss"] for row in line["predictions"]] == list(served.glosses)


def test_damaged_packet_does_not_change_the_gloss(demo_triton: LocalTriton, shared_folder: Path) -> None:
    with Recognizer(demo_triton.address) as recognizer:
        glosses = {
            name: recognizer.recognize(shared_folder / "zoo" / name).gloss for name in ("good.mp4", "bad_zero.mp4")
        }
    assert glosses["good.mp4"] == glosses["bad_zero.mp4"]


def test_film_with_a_damaged_packet_keeps_all_signs(demo_triton: LocalTriton, shared_folder: Path) -> None:
    with Recognizer(demo_triton.address) as recognizer:
        timeline = recognizer.timeline(shared_folder / "zoo" / "film_damaged_faststart.mp4")
    assert len(timeline.segments) == 8
    assert timeline.duration_s == pytest.approx(18.04, abs=0.01)
    assert len(timeline.warnings) == 1


def test_last_sign_is_timed_correctly_despite_duplicate_timestamps(
    demo_triton: LocalTriton, shared_folder: Path
) -> None:
    with Recognizer(demo_triton.address) as recognizer:
        segments = recognizer.timeline(shared_folder / "zoo" / "dup_times.webm").segments
    assert 15.5 < segments[-1].start_s < segments[-1].end_s < 18.1


def test_segment_times_start_at_the_beginning_of_the_file(demo_triton: LocalTriton, shared_folder: Path) -> None:
    with Recognizer(demo_triton.address) as recognizer:
        late = recognizer.timeline(shared_folder / "zoo" / "late.mp4").segments
    assert late and all(segment.start_s >= 1.5 for segment in late)


@pytest.mark.parametrize("frame_rate", [50, 60, 120, 240])
def test_high_frame_rate_video_gets_the_same_answer_as_at_the_usual_rate(
    demo_triton: LocalTriton, tmp_path: Path, frame_rate: int
) -> None:
    usual, fast = tmp_path / "usual.mp4", tmp_path / "fast.mp4"
    write_video(render(SIGNS[0], 9_000_000, fps=25.0 if frame_rate == 50 else 30.0), usual)
    ffmpeg("-i", usual, "-vf", f"fps={frame_rate}", "-c:v", "libx264", "-qp", "10", fast)
    with Recognizer(demo_triton.address) as recognizer:
        ours, theirs = recognizer.recognize(usual), recognizer.recognize(fast)
    assert ours.gloss == theirs.gloss == SIGNS[0].gloss
    assert theirs.num_frames > 1.5 * ours.num_frames and theirs.duration_s == pytest.approx(ours.duration_s, abs=0.1)
    assert f"{frame_rate} frames per second: one of" in theirs.warnings[0]
    # At 240, taking one frame in seven leaves 34 per second, so the sign looks a seventh slower.
    assert theirs.confidence == pytest.approx(ours.confidence, abs=0.2)
