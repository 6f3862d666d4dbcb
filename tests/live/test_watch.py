"""`asl-triton watch` against a real Triton: a film of the demo signer, a network camera, a server that is killed."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asl_triton.live.recognizer import LiveSession
from asl_triton.live.rules import LiveRules
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.video.reader import open_video
from asl_triton_deploy.local import LocalTriton
from tests.benchmarks.film import FilmSign, write_film
from tests.client.streams import NetworkCamera, jpeg, wait_until
from tests.client.videos import ffmpeg
from tests.command_line import asl_triton

Capture = pytest.CaptureFixture[str]
RULES = LiveRules(stride_frames=16)
ATTEMPTS = 3  # a busy machine drops signs when a film is watched in real time


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[FilmSign]]:
    """Write eight seconds of a signer unknown to the model, who signs three times with rests in between."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return path, write_film(path, seconds=8, signs=3, signs_per_scene=3, seed=1_400_100)


@pytest.fixture(scope="module")
def triton(fast_demo_triton: LocalTriton) -> LocalTriton:
    return fast_demo_triton


@pytest.fixture(scope="module")
def camera(film: tuple[Path, list[FilmSign]]) -> Iterator[NetworkCamera]:
    """Serve a network camera that shows the film in a loop."""
    with open_video(film[0]) as video:
        pictures = [jpeg(frame.image) for frame in video]
    with NetworkCamera(pictures=pictures).serving() as serving:
        yield serving


def read_events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_each_sign_of_a_film_is_printed_once_and_pauses_are_not(
    triton: LocalTriton, film: tuple[Path, list[FilmSign]], capsys: Capture
) -> None:
    path, signed = film
    options = ["--server", triton.address, "--model", "demo", "--stride", 16, "--json"]
    for _ in range(ATTEMPTS):
        done = asl_triton(capsys, "watch", path, *options)
        assert done.code == 0, done.output
        *signs, summary = read_events(done.out)
        if [sign["gloss"] for sign in signs] == [sign.gloss for sign in signed]:
            break
    else:
        raise AssertionError(done.out)
    for sign, truth in zip(signs, signed, strict=True):
        assert sign["event"] == "sign"
        assert abs(sign["start_s"] - truth.start_s) < 1.0
        assert sign["lag_s"] > 0
    assert summary["event"] == "summary"
    assert (summary["signs"], summary["dropouts"], summary["stopped"]) == (3, 0, None)
    with open_video(path) as video:
        assert 0 < summary["frames"] <= sum(1 for _ in video)
    assert 0 < summary["lag_p50_s"] <= summary["lag_p95_s"]


def test_session_reports_every_sign_on_a_slow_machine(triton: LocalTriton, film: tuple[Path, list[FilmSign]]) -> None:
    path, signed = film
    with Recognizer(triton.address, model="demo") as recognizer, LiveSession(recognizer, RULES) as session:
        wait_until(lambda: session.state().model == "demo", 60)
        with open_video(path) as video:
            for number, frame in enumerate(video, start=1):
                session.feed(frame.image, frame.time_s)
                due = (number - 16) // 16 + 1
                wait_until(lambda: session.state().windows >= due, 60)  # noqa: B023 - called immediately
        assert [event.gloss for event in session.state().events] == [sign.gloss for sign in signed]
        assert session.state().dropped_frames == 0


def test_glosses_are_printed_with_times_and_a_summary(
    triton: LocalTriton, film: tuple[Path, list[FilmSign]], tmp_path: Path, capsys: Capture
) -> None:
    words = tmp_path / "words.txt"
    words.write_text(f"{film[1][0].gloss}\n")
    beginning = tmp_path / "beginning.mp4"
    ffmpeg("-i", film[0], "-t", "3", "-c", "copy", beginning)
    options = ["--server", triton.address, "--model", "demo", "--stride", 16, "--window", 48]
    for _ in range(ATTEMPTS):
        done = asl_triton(capsys, "watch", beginning, *options, "--vocabulary", words, "--min-confidence", 0.4)
        assert done.code == 0, done.output
        if done.out:
            break
    (line,) = done.out.splitlines()
    time, gloss, confidence, percent = line.split()
    assert time.startswith("00:0") and gloss == film[1][0].gloss and float(confidence) >= 40 and percent == "%"
    assert "1 sign in" in done.err and "lag p50" in done.err and "frames dropped" in done.err


def test_watch_waits_for_a_restarted_server_and_ends_on_ctrl_c(triton: LocalTriton, camera: NetworkCamera) -> None:
    command = [sys.executable, "-m", "asl_triton", "watch", f"http://{camera.address}/mjpeg", "--json"]
    command += ["--server", triton.address, "--stride", "16"]
    events: list[dict[str, Any]] = []

    def has_seen(kind: str, start: int = 0) -> Callable[[], bool]:
        return lambda: any(event["event"] == kind for event in events[start:])

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None and watching.stderr is not None
        reading = threading.Thread(target=lambda: events.extend(json.loads(line) for line in watching.stdout or ()))
        reading.start()
        try:
            wait_until(has_seen("sign"), 120)
            triton.stop()
            wait_until(has_seen("server away"), 60)
            triton.start()
            wait_until(has_seen("server back"), 120)
            wait_until(has_seen("sign", len(events)), 120)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 0
            reading.join(30)
            assert "Traceback" not in watching.stderr.read()
        finally:
            watching.kill()
    kinds = [event["event"] for event in events]
    assert kinds.count("server away") == kinds.count("server back") == 1
    assert kinds[-1] == "summary" and events[-1]["signs"] == kinds.count("sign") >= 2
    assert triton.address in events[kinds.index("server away")]["reason"]


def test_lost_camera_ends_with_exit_code_3(triton: LocalTriton, camera: NetworkCamera, capsys: Capture) -> None:
    source = f"http://user:hidden@{camera.address}/mjpeg"
    timer = threading.Timer(3, camera.is_away.set)
    timer.start()
    try:
        options = ["--server", triton.address, "--model", "demo", "--give-up", 0.2]
        done = asl_triton(capsys, "watch", source, *options)
    finally:
        timer.join()
        camera.is_away.clear()
    assert done.code == 3, done.output
    assert f"no more frames from http://{camera.address}/mjpeg: waiting for it" in done.output
    assert "stopped before the end: gave up after" in done.output
    assert "hidden" not in done.output


@pytest.mark.parametrize(("options", "code", "error"), [
    (["nowhere.mp4"], 1, "there is no file nowhere.mp4"),
    (["97"], 1, "camera 97 does not exist"),
    (["http://127.0.0.1:1/x"], 1, "no answer from 127.0.0.1, port 1"),
    (["FILM", "--model", "nobody"], 1, "serves no model 'nobody'"),
    (["FILM", "--model", "demo", "--window", "8"], 1, "a window of 8 frames is out of range"),
    (["FILM", "--model", "demo", "--vocabulary", "WORDS"], 1, "does not know 1 of the 1 glosses"),
    (["FILM", "--server", "127.0.0.1:1"], 1, "no server answers at 127.0.0.1:1"),
    ([], 2, "Missing argument"),
    (["FILM", "--min-confidence", "2"], 2, "--min-confidence"),
    (["FILM", "--stride", "0"], 2, "--stride"),
])  # fmt: skip
def test_unusable_sources_and_options_are_errors(
    triton: LocalTriton,
    film: tuple[Path, list[FilmSign]],
    tmp_path: Path,
    capsys: Capture,
    options: list[str],
    code: int,
    error: str,
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("nonsense\n")
    arguments = [{"FILM": film[0], "WORDS": words}.get(option, option) for option in options]
    done = asl_triton(capsys, "watch", *arguments, *([] if "--server" in arguments else ["--server", triton.address]))
    assert done.code == code, done.output
    assert error in done.output
