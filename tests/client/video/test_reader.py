"""Reading files, bytes and streams as timed frames: unusual and truncated videos, and files that are not videos."""

import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from asl_triton.errors import VideoError
from asl_triton.video.reader import Limits, Video, open_video
from tests.client import videos

MJPEG = ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"]
WriteFile = Callable[[Path], Path]
MESSAGE_OF_TEXT = "cannot be read as a video: it is something else"


def read_all(source: object, limits: Limits | None = None) -> tuple[Video, list[np.ndarray], list[float]]:
    with open_video(source, limits) as video:  # type: ignore[arg-type]
        frames = list(video)
    return video, [frame.image for frame in frames], [frame.time_s for frame in frames]


@pytest.mark.parametrize("extension", [".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm"])
def test_container_is_read_from_path_bytes_and_stream(tmp_path: Path, extension: str) -> None:
    path = videos.clip(tmp_path / f"clip{extension}", num_frames=30)
    video, images, times = read_all(path)
    assert (video.num_frames, video.declared_frames, video.frame_rate) == (30, 30, 25)
    assert video.duration_s == pytest.approx(30 / 25)
    assert times == pytest.approx([k / 25 for k in range(30)])
    assert video.warnings == []
    assert images[0].shape == (48, 64, 3) and images[0].dtype == np.uint8
    content = path.read_bytes()
    with path.open("rb") as file:
        for source in (str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), file):
            assert np.array_equal(read_all(source)[1], images)


@pytest.mark.parametrize("num_frames", [1, 8, 3000])
def test_every_length_is_read_completely(tmp_path: Path, num_frames: int) -> None:
    path = videos.clip(tmp_path / "clip.mp4", num_frames, size="32x32")
    assert read_all(path)[0].num_frames == num_frames


@pytest.mark.parametrize("size", ["16x16", "2x2", "7680x4320"])
def test_every_size_is_read(tmp_path: Path, size: str) -> None:
    path = videos.clip(tmp_path / "clip.avi", num_frames=3, size=size)
    width, height = map(int, size.split("x"))
    assert [image.shape for image in read_all(path)[1]] == [(height, width, 3)] * 3


# Counter-clockwise rotation, as in FFmpeg, and where the blue corner, stored at the top left, then appears.
@pytest.mark.parametrize(("degrees", "shape", "blue"), [
    (0, (40, 80), (5, 5)), (90, (80, 40), (-5, 5)), (180, (40, 80), (-5, -5)), (-90, (80, 40), (5, -5)),
])  # fmt: skip
@pytest.mark.parametrize("in_memory", [False, True])
def test_rotation_metadata_is_honored(
    tmp_path: Path, degrees: int, shape: tuple[int, int], blue: tuple[int, int], in_memory: bool
) -> None:
    path = videos.rotated(tmp_path / "turned.mp4", videos.corners(tmp_path / "corners.mp4"), degrees)
    image = read_all(path.read_bytes() if in_memory else path)[1][0]
    assert image.shape == (*shape, 3)
    assert image[blue] == pytest.approx([255, 0, 0], abs=40)


def test_gray_frames_are_converted_to_bgr(tmp_path: Path) -> None:
    images = read_all(videos.levels(tmp_path / "gray.mkv", [0, 100, 255]))[1]
    assert [image.shape for image in images] == [(48, 64, 3)] * 3
    assert [image.mean() for image in images] == pytest.approx([0, 100, 255], abs=1)


@pytest.mark.parametrize("extension", [".mp4", ".mkv", ".webm"])
def test_variable_frame_rate_keeps_its_times_without_warnings(tmp_path: Path, extension: str) -> None:
    video, _, times = read_all(videos.uneven(tmp_path / f"uneven{extension}", num_frames=60))
    kept = [n for n in range(150) if n % 3 == 0 or n % 7 > 4][:60]
    assert times == pytest.approx([n / 25 for n in kept], abs=1e-3)
    assert video.warnings == []


def test_frames_hidden_by_an_edit_list_are_not_lost_frames(tmp_path: Path) -> None:
    source = videos.clip(tmp_path / "whole.mp4", num_frames=100)
    video, _, times = read_all(videos.trimmed(tmp_path / "trimmed.mp4", source, start_s=1.2))
    assert video.num_frames == 70
    assert times[0] == 0
    assert video.warnings == []


def test_audio_longer_than_the_video_gives_no_warning(tmp_path: Path) -> None:
    assert read_all(videos.with_audio(tmp_path / "long_sound.mkv"))[0].warnings == []


def test_trailing_bytes_give_no_warning(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "phone.mp4")
    path.write_bytes(path.read_bytes() + b"\x7f\xff\xff\xffSEFT" + bytes(100))
    assert read_all(path)[0].warnings == []


@pytest.mark.parametrize("extension", [".mp4", ".mov", ".avi", ".mkv", ".webm"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_truncated_file_gives_its_readable_frames_and_a_warning(
    tmp_path: Path, extension: str, in_memory: bool
) -> None:
    source = videos.clip(tmp_path / f"whole{extension}", num_frames=100, options=["-g", "10"])
    if extension in (".mp4", ".mov"):
        source = videos.faststart(tmp_path / f"fast{extension}", source)
    path = videos.cut(tmp_path / f"cut{extension}", source)
    video, _, _ = read_all(path.read_bytes() if in_memory else path)
    assert 10 < video.num_frames < 90
    assert video.warnings == [f"cut off: the file ends too early, after {video.num_frames} readable frames"]


def test_live_recording_of_unknown_length_is_complete(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "live.webm", num_frames=30, options=["-live", "1", "-f", "webm"])
    video, _, _ = read_all(path)
    assert (video.num_frames, video.warnings) == (30, [])


def write_mp4_without_frames(path: Path) -> Path:
    """Write an mp4 that is truncated right after its index."""
    whole = videos.clip(path.with_name("whole.mp4"))
    return videos.cut(path, videos.faststart(path.with_name("fast.mp4"), whole), share=0.3)


NOT_VIDEOS: dict[str, tuple[WriteFile, str]] = {
    "zero bytes": (lambda path: path.touch() or path, "is empty (0 bytes)"),
    "one byte": (lambda path: path.write_bytes(b"\0") and path, MESSAGE_OF_TEXT),
    "text": (lambda path: path.write_bytes(videos.TEXT) and path, MESSAGE_OF_TEXT),
    "PDF": (lambda path: path.write_bytes(videos.PDF) and path, MESSAGE_OF_TEXT),
    "JPEG": (videos.still, MESSAGE_OF_TEXT),
    "audio only": (videos.audio_only, "cannot be read as a video: it is audio only"),
    "cut before its index": (
        lambda path: videos.cut(path, videos.clip(path.with_name("whole.mp4"))),
        "cannot be read as a video: the file is cut off",
    ),
    "cut before its frames": (
        write_mp4_without_frames,
        "cannot be read as a video: the file is cut off",
    ),
    "box of no end": (lambda path: path.write_bytes(b"\0\0\0\x18ftypisom" + b"\xff" * 100) and path, "cannot be read"),
    "RIFF of no end": (lambda path: path.write_bytes(b"RIFF\xff\xff\xff\xffAVI LIST") and path, "cannot be read"),
    "EBML of no end": (lambda path: path.write_bytes(b"\x1aE\xdf\xa3") and path, "cannot be read"),
    "a folder": (lambda path: path.mkdir() or path, "is a folder, not a video"),
    "nothing": (lambda path: path, "there is no file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere") or path, "is a link to nowhere, which does not"),
    "a link to itself": (lambda path: path.symlink_to(path) or path, "cannot read"),
    "a pipe": (lambda path: os.mkfifo(path) or path, "is not a regular file"),
    "16K": (lambda path: videos.huge(path.with_suffix(".avi")), "beyond the limit of 33,177,600 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_VIDEOS)
def test_file_that_is_not_a_video_is_rejected(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, says = NOT_VIDEOS[kind]
    path = make(tmp_path / "clip.mp4")
    with pytest.raises(VideoError) as from_path:
        read_all(path)
    assert says in str(from_path.value) and path.name in str(from_path.value)
    if path.is_file():
        with pytest.raises(VideoError) as from_bytes:
            read_all(path.read_bytes())
        assert str(from_bytes.value) == str(from_path.value).replace(str(path), "the video")
    assert capfd.readouterr() == ("", "")


def test_invalid_file_name_is_rejected() -> None:
    with pytest.raises(VideoError, match="cannot read"):
        open_video("a\0b.mp4")


@pytest.mark.parametrize("in_memory", [False, True])
def test_playlist_opens_no_other_file_or_connection(tmp_path: Path, in_memory: bool) -> None:
    other = videos.clip(tmp_path / "other.mp4")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/secret.ts"
    for path in (videos.playlist(tmp_path / "a.mp4", other), videos.stream_playlist(tmp_path / "b.mp4", url)):
        with pytest.raises(VideoError, match=MESSAGE_OF_TEXT):
            read_all(path.read_bytes() if in_memory else path)
    listener.setblocking(False)
    with listener, pytest.raises(BlockingIOError):
        listener.accept()


SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


@pytest.mark.parametrize("head", [b"", b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 \n"])
def test_session_description_opens_no_port_and_does_not_block(tmp_path: Path, head: bytes) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(head + SDP)
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError, match="cannot be read as a video"):
            read_all(source)
    assert [c for c in psutil.Process().net_connections("udp") if c.laddr and c.laddr.port in (5004, 5005)] == []


def test_picture_that_grows_beyond_the_limit_is_rejected_before_conversion(tmp_path: Path) -> None:
    small, large = (
        videos.clip(tmp_path / f"{side}.avi", 5, size=f"{side}x{side}", options=MJPEG) for side in (64, 2048)
    )
    with (
        av.open(str(small)) as source,
        av.open(str(large)) as other,
        av.open(str(tmp_path / "grows.avi"), "w") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for container in (source, other):
            for packet in container.demux(video=0):
                if packet.size:
                    packet.pts = packet.dts = None
                    packet.stream = stream
                    target.mux(packet)
    video = open_video(tmp_path / "grows.avi", Limits(max_pixels=512 * 512))
    with video:
        try:
            count = sum(1 for _ in video)
        except VideoError as exc:
            assert "2048 x 2048 pixels, beyond the limit" in str(exc)
        else:
            assert (count, video.lost_frames) == (5, 5)
    with open_video(tmp_path / "grows.avi") as video:
        assert [frame.image.shape[0] for frame in video] == [64] * 5 + [2048] * 5


@pytest.mark.parametrize("name", [
    b"two words.mp4", b"it's \"quoted\".mp4", "signe 🤟 été.mp4".encode(), b"-dash.mp4", b"concat:x.mp4", b"100%d.mp4",
    b"new\nline.mp4", b"not \xff UTF-8.mp4",
])  # fmt: skip
def test_odd_file_names_are_taken_literally(tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    os.rename(videos.clip(tmp_path / "plain.mp4", num_frames=9), path)
    monkeypatch.chdir(tmp_path)
    for source in (path, path.name):
        assert read_all(source)[0].num_frames == 9


@pytest.mark.parametrize(("limits", "says"), [
    (Limits(max_bytes=100), "larger than 100 bytes, the limit"),
    (Limits(max_frames=24), "more than 24 frames, the limit"),
    (Limits(max_pixels=64 * 48 - 1), "64 x 48 pixels, beyond the limit of 3,071"),
])  # fmt: skip
def test_exceeded_limit_is_rejected(tmp_path: Path, limits: Limits, says: str) -> None:
    path = videos.clip(tmp_path / "clip.mp4", num_frames=25)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with pytest.raises(VideoError, match=says):
            read_all(source, limits)
    assert read_all(path, Limits(max_frames=25, max_pixels=64 * 48))[0].num_frames == 25


def test_damaged_frames_print_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = videos.clip(tmp_path / "clip.mp4", num_frames=50, options=["-bf", "0", "-g", "10"])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = np.random.default_rng(0).bytes(500)
    assert read_all(bytes(content))[0].num_frames > 9
    assert capfd.readouterr() == ("", "")


def test_closing_stops_a_reader_in_another_thread(tmp_path: Path) -> None:
    video = open_video(videos.clip(tmp_path / "long.mp4", num_frames=3000, size="32x32"))
    started, read = threading.Event(), []

    def read_on() -> None:
        for frame in video:
            read.append(frame.time_s)
            started.set()

    reader = threading.Thread(target=read_on)
    reader.start()
    started.wait()
    video.close()
    reader.join()
    assert 0 < len(read) < 3000


def test_bytes_may_be_freed_before_the_video(tmp_path: Path) -> None:
    code = (
        "import sys, gc; from asl_triton.video.reader import open_video\n"
        "for _ in range(20):\n"
        "    with open_video(open(sys.argv[1], 'rb').read()) as video: print(sum(1 for _ in video))\n"
        "    video = open_video(open(sys.argv[1], 'rb').read()); del video; gc.collect()\n"
    )
    path = videos.clip(tmp_path / "clip.mp4", num_frames=9)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["9"] * 20, "")


def test_share_read_is_known_if_the_container_has_a_frame_count(tmp_path: Path) -> None:
    with open_video(videos.clip(tmp_path / "clip.mp4", num_frames=20)) as video:
        assert [video.share_read for _ in video] == pytest.approx([n / 20 for n in range(1, 21)])
    video.declared_frames = 0
    assert video.share_read == 0


def test_long_video_is_rejected_before_decoding_if_its_length_is_known(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "long.mp4", num_frames=50)  # 2 seconds
    with pytest.raises(VideoError, match=r"long.mp4 is longer than 0.02 minutes, the limit: cut it shorter"):
        open_video(path, Limits(max_duration_s=1.2))
    with open_video(path, Limits(max_duration_s=2.0)) as video:
        assert len(list(video)) == 50


def test_long_video_of_unknown_length_is_rejected_at_the_limit(tmp_path: Path) -> None:
    with open_video(videos.clip(tmp_path / "long.mp4", num_frames=50), Limits(max_duration_s=1.9)) as video:
        with pytest.raises(VideoError, match="longer than"):
            list(video)
        assert video.num_frames == 48


def test_memory_of_frames_is_freed(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "clip.mp4", 200, size="640x480", options=["-preset", "ultrafast"])
    process, largest = psutil.Process(), 0
    before = process.memory_info().rss
    with open_video(path) as video:
        for _ in video:
            largest = max(largest, process.memory_info().rss - before)
    assert largest < 60 * 2**20  # all frames together are 90 MB, or 180 MB as BGR
