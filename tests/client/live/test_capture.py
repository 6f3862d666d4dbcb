"""Frames from files and network cameras: pace, dropouts, and sources that cannot be used."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from asl_triton.errors import VideoError
from asl_triton.live import capture
from asl_triton.live import sources as feeds
from asl_triton.live.capture import Capture, SourceLost, SourceResumed
from asl_triton.video.reader import Frame, open_video
from tests.client.rtsp_camera import RtspCamera, pictures_of
from tests.client.streams import NetworkCamera
from tests.client.videos import clip, faststart, levels, uneven


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 1.5 seconds with its index at the front."""
    folder = tmp_path_factory.mktemp("film")
    whole = clip(folder / "whole.mp4", 38, size="320x240", options=["-crf", "5", "-g", "5"])
    return faststart(folder / "film.mp4", whole)


@pytest.fixture
def camera(film: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NetworkCamera]:
    """A network camera, with a short pause before reconnecting."""
    monkeypatch.setattr(capture, "MIN_PAUSE_S", 0.05)
    (film.parent / "page.html").write_text("<!doctype html><title>no video</title>" * 100)
    with NetworkCamera(film.parent, frame_rate=50).serving() as serving:
        yield serving


def read_times(path: Path) -> list[float]:
    with open_video(path) as video:
        return [frame.time_s for frame in video]


@pytest.mark.parametrize("make", [clip, uneven])
def test_file_is_played_at_its_own_pace_to_the_end(tmp_path: Path, make: Callable[..., Path]) -> None:
    path = make(tmp_path / "clip.mkv", 20)
    began_s = time.monotonic()
    with Capture(str(path)) as source:
        arrivals = [(item, time.monotonic() - began_s) for item in source]
    assert [item.time_s for item, _ in arrivals] == read_times(path)  # type: ignore[union-attr]
    assert all(at_s > item.time_s - 0.05 for item, at_s in arrivals)  # type: ignore[union-attr]
    assert source.name == str(path)


def test_paused_reader_loses_no_frame_and_keeps_its_pace(tmp_path: Path) -> None:
    path = levels(tmp_path / "levels.mkv", range(40), rate=40)
    with Capture(str(path)) as source:
        frames = iter(source)
        next(frames)
        time.sleep(1.5)
        began_s = time.monotonic()
        levels_seen = [item.image[0, 0, 0] for item in frames if isinstance(item, Frame)]
    assert levels_seen == list(range(1, 40))
    assert time.monotonic() - began_s > 38 / 40 - 0.1


def test_closing_from_another_thread_ends_the_iteration(camera: NetworkCamera) -> None:
    with Capture(f"http://{camera.address}/mjpeg") as source:
        threading.Timer(0.3, source.close).start()
        assert sum(1 for _ in source) > 0


@pytest.mark.parametrize(("source", "message"), [
    ("97", "camera 97 does not exist"),
    ("/dev/video97", "camera 97 does not exist"),
    ("nowhere.mp4", "there is no file nowhere.mp4"),
    (".", "is a folder"),
    ("ftp://user:hidden@host/x.mp4", "ftp:// is not supported"),
    ("rtsp://user:hidden@:554/x", "has no host"),
    ("rtsp://user:hidden@host:99999/x", "no readable host and port"),
    ("rtsp://user:hidden@[host/x", "no readable host and port"),
    ("rtsp://user:hidden@no-such-host.invalid/x", "cannot resolve host no-such-host.invalid"),
    ("http://user:hidden@127.0.0.1:1/x?token=hidden", "no answer from 127.0.0.1, port 1"),
])  # fmt: skip
def test_missing_source_is_a_clear_error_without_the_password(source: str, message: str) -> None:
    with pytest.raises(VideoError) as raised, Capture(source):
        pass
    assert message in str(raised.value)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "address", ["http://user:hidden@{}/nothing.mp4?hidden", "rtsp://user:hidden@{}/x", "http://{}/page.html"]
)
def test_address_without_a_video_is_a_clear_error(camera: NetworkCamera, address: str) -> None:
    with pytest.raises(VideoError, match=r"127\.0\.0\.1 answers, but not with a video") as raised:
        Capture(address.format(camera.address)).__enter__()
    assert "hidden" not in str(raised.value)


def test_file_that_is_not_a_video_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    with pytest.raises(VideoError, match="cannot be read as a video"), Capture(str(tmp_path / "text.mp4")):
        pass


def test_silent_camera_is_a_clear_error(camera: NetworkCamera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "OPEN_TIMEOUT_S", 0.3)
    camera.is_silent.set()
    with pytest.raises(VideoError, match="cannot open"), Capture(f"http://{camera.address}/mjpeg"):
        pass


@pytest.mark.parametrize("fault", ["is_away", "is_silent"])
def test_dropout_is_reported_once_and_waited_out(
    camera: NetworkCamera, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(feeds, "OPEN_TIMEOUT_S", 0.3)
    monkeypatch.setattr(feeds, "READ_TIMEOUT_S", 0.3)
    changes: list[SourceLost | SourceResumed] = []
    times_s: list[float] = []
    with Capture(f"http://user:hidden@{camera.address}/mjpeg?hidden") as source:
        for item in source:
            if isinstance(item, Frame):
                times_s.append(item.time_s)
                if len(times_s) == 10:
                    getattr(camera, fault).set()
                if len(changes) == 2 and len(times_s) > 20:
                    break
            else:
                changes.append(item)
                if isinstance(item, SourceLost):
                    threading.Timer(0.7, getattr(camera, fault).clear).start()
    dropout, resumed = changes
    assert isinstance(dropout, SourceLost) and isinstance(resumed, SourceResumed)
    assert dropout.reason == f"no more frames from http://{camera.address}/mjpeg"
    assert resumed.away_s >= 0.3
    assert np.diff(times_s).min() >= 0
    assert times_s[-1] > 0.7  # the clock kept running
    assert camera.num_connections >= 3


def test_rtsp_camera_is_read_with_a_password_and_through_a_dropout(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MIN_PAUSE_S", 0.05)
    changes: list[str] = []
    with RtspCamera(pictures_of(film), "user", "hidden").serving() as camera:
        with pytest.raises(VideoError, match="check the path, user and password"):
            Capture(f"rtsp://user:wrong@{camera.address}/live").__enter__()
        with Capture(f"rtsp://user:hidden@{camera.address}/live") as source:
            shapes = set()
            for number, item in enumerate(source):
                if not isinstance(item, Frame):
                    changes.append(f"{item}")
                    camera.is_away.clear()
                    continue
                shapes.add(item.image.shape)
                if number == 10:
                    camera.is_away.set()
                if len(changes) == 2:
                    break
    assert shapes == {(240, 320, 3)}
    assert [change.partition("(")[0] for change in changes] == ["SourceLost", "SourceResumed"]
    assert camera.address in changes[0] and "hidden" not in changes[0]
    assert camera.num_plays == 2


def test_remote_video_resumes_where_it_was_cut_off(camera: NetworkCamera, film: Path) -> None:
    camera.cut_after = film.stat().st_size // 4
    with Capture(f"http://{camera.address}/{film.name}") as source:
        items = list(source)
    frames = [item for item in items if isinstance(item, Frame)]
    assert [type(item) for item in items if not isinstance(item, Frame)] == [SourceLost, SourceResumed]
    assert [round(frame.time_s, 3) for frame in frames] == [round(time_s, 3) for time_s in read_times(film)]
    assert camera.num_connections == 2


def test_lost_source_is_given_up_after_give_up_s(camera: NetworkCamera) -> None:
    with Capture(f"http://user:hidden@{camera.address}/mjpeg", give_up_s=0.2) as source:
        frames = iter(source)
        next(frames)
        camera.is_away.set()
        with pytest.raises(VideoError, match=r"gave up after \d+ s without a frame: cannot open http://127") as raised:
            list(frames)
    assert "hidden" not in str(raised.value)


def test_remote_video_with_a_damaged_packet_plays_to_the_end(shared_folder: Path) -> None:
    camera = NetworkCamera(shared_folder / "zoo")
    address = f"http://{camera.address}/film_damaged_faststart.mp4"
    with camera.serving(), Capture(address) as source:
        source._source.is_paced = False  # as fast as possible
        items = list(source)
    assert all(isinstance(item, Frame) for item in items)
    assert len(items) == 432
    assert items[-1].time_s == pytest.approx(18.0, abs=0.05)


@pytest.mark.parametrize(
    "address", ["rtsp://user:hid/den@camera/live", "rtsp://user:hid#den@c/", "http://u:hid?den@c/"]
)
def test_unencoded_password_is_not_shown(address: str) -> None:
    with pytest.raises(VideoError, match="write %2F, %3F or %23") as raised:
        Capture(address)
    assert "den" not in str(raised.value)
