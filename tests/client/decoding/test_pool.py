"""Decoding in worker processes: same crops as in this process, and failures stay isolated."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from asl_triton.decoding.base import DecodeSession, WindowingOptions
from asl_triton.decoding.in_process import InProcessDecodeSession
from asl_triton.decoding.pool import MAX_IDLE, DecoderPool, WorkerHandle
from asl_triton.decoding.worker import DecoderLimits
from asl_triton.errors import AslTritonError, ServerError, VideoError
from asl_triton.presets import PRESETS, Preset
from asl_triton.video.reader import LONG_VIDEO_LIMITS, Limits, Source
from tests.client.decoder_processes import decoders as decoding
from tests.client.decoder_processes import is_decoder, of_this_process, server_and_decoder, wait_until, workers
from tests.client.video.test_reader import NOT_VIDEOS
from tests.client.videos import clip, cut, faststart, huge, levels, uneven

WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]
PLAIN = WindowingOptions(WLASL, Limits())
OPENED = b'{"num_bytes": 1, "width": 1, "height": 1, "declared_frames": 1, "crops_held": 1}'
WINDOW = (
    b'{"num_frames": 1, "duration_s": 1, "share_read": 1, "lost_frames": 0, "warnings": [], '
    b'"is_last": true, "is_reusable": true, "window": %b}'
)


@pytest.fixture(scope="module", params=[1, 100], ids=["one video per process", "many"])
def decoders(request: pytest.FixtureRequest) -> Iterator[DecoderPool]:
    shared = DecoderPool(DecoderLimits(videos_per_process=request.param))
    yield shared
    shared.close()


@pytest.fixture
def reusing_pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(DecoderLimits(max_decode_s=None, max_window_s=30, videos_per_process=4))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 100, rate="30").read_bytes()


def find_workers(pool: DecoderPool) -> list[psutil.Process]:
    """Find the workers of a pool."""
    return [worker for worker in workers() if pool._server is not None and worker.ppid() == pool._server.pid]


def decode_both_ways(
    pool: DecoderPool, source: Source, options: WindowingOptions, name: str | None = None
) -> tuple[Any, Any]:
    """Decode a video in this process and with a pool; returns what each session reports."""
    return decode(InProcessDecodeSession(source, options, name)), decode(pool.create_session(source, options, name))


def decode(session: DecodeSession) -> list[Any]:
    """Return all that a session reports of a video: its properties, its windows, and how much was read."""
    with session:
        reported: list[Any] = [asdict(session.open())]
        for window, span in session.windows():
            reported.append((window.start, window.frames.shape, window.frames.tobytes()))
            reported.append((span.start, span.num_frames, span.shot, span.edges_s.tolist()))
    assert session.decode_s > 0
    frames = (session.num_frames, session.lost_frames)
    return [*reported, session.name, frames, session.duration_s, session.share_read, session.warnings]


def decode_with_error(session: DecodeSession) -> str:
    """Return the error of a video that cannot be decoded."""
    with pytest.raises(VideoError) as failure:
        decode(session)
    return str(failure.value)


@pytest.mark.parametrize("options", [
    *(WindowingOptions(preset, Limits()) for preset in PRESETS.values()),
    WindowingOptions(replace(WLASL, max_frames=64), Limits()),
    WindowingOptions(replace(WLASL, max_frames=64), LONG_VIDEO_LIMITS, is_film=True),
], ids=lambda c: f"{c.preset.name}-{c.preset.max_frames}-{c.is_film}")  # fmt: skip
def test_windows_match_decoding_in_process(
    decoders: DecoderPool, video: bytes, tmp_path: Path, options: WindowingOptions
) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(video)
    for source in (video, memoryview(video), path, str(path)):
        in_process, in_worker = decode_both_ways(decoders, source, options)
        assert in_process == in_worker
        assert len(in_process) > 6


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_windows_of_real_clips_match_decoding_in_process(
    decoders: DecoderPool, shared_folder: Path, preset: Preset
) -> None:
    for path in sorted((shared_folder / "wlasl" / "videos").iterdir()):
        for options in (WindowingOptions(preset, Limits()), WindowingOptions(preset, LONG_VIDEO_LIMITS, is_film=True)):
            in_process, in_worker = decode_both_ways(decoders, path, options, "it")
            assert in_process == in_worker


def test_films_with_cuts_or_uneven_frames_match_decoding_in_process(decoders: DecoderPool, tmp_path: Path) -> None:
    dark, light = [60] * 40, [190] * 30
    sources = (levels(tmp_path / "shots.mkv", [*dark, *light, *dark]), uneven(tmp_path / "uneven.mp4", 100))
    for source in sources:
        film = WindowingOptions(
            replace(WLASL, window_frames=32, stride_frames=16, max_frames=32), LONG_VIDEO_LIMITS, is_film=True
        )
        in_process, in_worker = decode_both_ways(decoders, source, film)
        assert in_process == in_worker
    assert [span[2] for span in decode(decoders.create_session(sources[0], film))[2:-5:2]] == [0, 0, 1, 2, 2]


def test_warnings_match_decoding_in_process(decoders: DecoderPool, tmp_path: Path) -> None:
    full = clip(tmp_path / "whole.mp4", 40, size="320x240")
    half = cut(tmp_path / "half.mp4", faststart(tmp_path / "fast.mp4", full), 0.6)
    for source in (half, half.read_bytes()):
        assert decode(decoders.create_session(source, PLAIN)) == decode(InProcessDecodeSession(source, PLAIN))
    assert "cut off" in decode(decoders.create_session(half, PLAIN))[-1][0]


@pytest.mark.parametrize("kind", NOT_VIDEOS)
def test_invalid_video_has_the_same_error_as_in_process(decoders: DecoderPool, tmp_path: Path, kind: str) -> None:
    make, message = NOT_VIDEOS[kind]
    path = make(tmp_path / "clip.mp4")
    sources: list[Source] = [path, *([path.read_bytes()] if path.is_file() else [])]
    for source in sources:
        error = decode_with_error(decoders.create_session(source, PLAIN))
        assert error == decode_with_error(InProcessDecodeSession(source, PLAIN)) and message in error
        error = decode_with_error(decoders.create_session(source, PLAIN, "mine \udcff"))
        assert error == decode_with_error(InProcessDecodeSession(source, PLAIN, "mine \udcff")) and error.startswith(
            ("mine \udcff", "there is no file mine", "cannot read mine")
        )


@pytest.mark.parametrize("name", [b"not \xff UTF-8.mp4", b"-dash.mp4", b"new\nline.mp4", b"concat:x.mp4"])
def test_odd_file_name_does_not_matter(
    decoders: DecoderPool, video: bytes, tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    path.write_bytes(video)
    assert decode(decoders.create_session(path, PLAIN)) == decode(InProcessDecodeSession(path, PLAIN))


def test_impossible_file_name_is_a_clear_error(decoders: DecoderPool) -> None:
    assert decode_with_error(decoders.create_session("a\0b.mp4", PLAIN)) == decode_with_error(
        InProcessDecodeSession("a\0b.mp4", PLAIN)
    )
    assert decode_with_error(decoders.create_session("\ud800.mp4", PLAIN)).startswith("cannot read \ud800.mp4: ")


@pytest.mark.parametrize("limits", [Limits(max_bytes=1000), Limits(max_frames=50), Limits(max_pixels=1000)], ids=str)
def test_exceeded_limit_has_the_same_error_as_in_process(
    decoders: DecoderPool, video: bytes, tmp_path: Path, limits: Limits
) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(video)
    for source in (video, path):
        error = decode_with_error(decoders.create_session(source, WindowingOptions(WLASL, limits), "it"))
        assert error == decode_with_error(InProcessDecodeSession(source, WindowingOptions(WLASL, limits), "it"))
        assert error.startswith("it ") and "limit" in error and "\n" not in error


def test_too_many_frames_can_be_refused_before_decoding(decoders: DecoderPool, video: bytes) -> None:
    early = WindowingOptions(WLASL, Limits(max_frames=50), refuses_early=True)
    with decoders.create_session(video, early, "it") as session:
        with pytest.raises(VideoError, match="it has more than 50 frames, the limit"):
            session.open()
        assert session.num_frames == 0


def test_video_that_needs_too_much_memory_is_a_clear_error(tmp_path: Path) -> None:
    path = huge(tmp_path / "huge.avi", "6000x4000")
    decoders = DecoderPool(DecoderLimits(max_memory_bytes=96 * 2**20))
    with decoders.create_session(path, PLAIN, "it") as session:
        session.open()
        with pytest.raises(VideoError, match="it takes more memory to decode than is available"):
            session.next_window()
    decoders.close()


@pytest.mark.parametrize(("signum", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT")])
def test_crashed_decoder_is_a_clear_error_and_the_next_video_is_decoded(
    decoders: DecoderPool, video: bytes, signum: signal.Signals, name: str
) -> None:
    with decoders.create_session(video, PLAIN, "it") as session:
        session.open()
        server, decoder = server_and_decoder()
        decoder.send_signal(signum)
        with pytest.raises(VideoError, match=rf"^it cannot be decoded: it ends the decoder \({name}\). Convert"):
            session.next_window()
    assert len(decode(decoders.create_session(video, PLAIN))) == 8
    assert server.is_running()


def test_decoder_that_computes_too_long_is_ended(decoders: DecoderPool, video: bytes) -> None:
    with decoders.create_session(video, PLAIN, "it") as session:
        session.open()
        server_and_decoder()[1].send_signal(signal.SIGXCPU)
        with pytest.raises(VideoError, match="it takes more than 60 s to decode, the limit"):
            session.next_window()


def test_hung_decoder_fails_only_its_video(video: bytes) -> None:
    decoders = DecoderPool(DecoderLimits(max_decode_s=None, max_window_s=6))
    message = r"^it cannot be decoded: the decoder stood still for 6 s. Convert .* give it longer \(--decode-timeout\)"
    with decoders.create_session(video, PLAIN, "it") as session:
        session.open()
        _, decoder = server_and_decoder()
        decoder.suspend()
        with pytest.raises(VideoError, match=message):
            session.next_window()
    assert wait_until(lambda: not is_decoder(decoder))
    with decoders.create_session(video, PLAIN, "it") as session:  # the CPU limit also ends one that computes forever
        session.open()
        allowed, _ = server_and_decoder()[1].rlimit(psutil.RLIMIT_CPU)
        assert 6 <= allowed <= 9
        server_and_decoder()[1].send_signal(signal.SIGXCPU)
        with pytest.raises(VideoError, match=message):
            session.next_window()
    assert len(decode(decoders.create_session(video, PLAIN))) == 8
    decoders.close()


def test_decoders_leave_interruptions_to_their_client(video: bytes) -> None:
    decoders = DecoderPool(DecoderLimits())
    before = of_this_process()
    decoders.warm_up()
    assert wait_until(lambda: len(of_this_process()) > len(before))
    (interrupted,) = set(of_this_process()) - set(before)
    for signum in (signal.SIGINT, signal.SIGTERM):  # while it starts
        interrupted.send_signal(signum)
    with decoders.create_session(video, PLAIN) as session:
        session.open()
        for process in of_this_process():
            for signum in (signal.SIGINT, signal.SIGTERM):
                process.send_signal(signum)
        assert len(list(session.windows())) == 1
    assert interrupted.is_running()
    decoders.close()
    assert not interrupted.is_running()


def test_dead_server_fails_no_video_and_is_restarted(decoders: DecoderPool, video: bytes) -> None:
    with decoders.create_session(video, PLAIN) as session:
        session.open()
        server, _ = server_and_decoder()
        server.kill()
        assert len(list(session.windows())) == 1
    assert len(decode(decoders.create_session(video, PLAIN))) == 8
    assert not is_decoder(server)


def test_video_whose_processes_all_died_must_be_sent_again(decoders: DecoderPool, video: bytes) -> None:
    with decoders.create_session(video, PLAIN) as session:
        session.open()
        for process in server_and_decoder():
            process.kill()
        with pytest.raises(ServerError, match="the decoding of the video was interrupted: send it again"):
            list(session.windows())


def test_closing_a_session_wakes_the_thread_that_waits_for_it(decoders: DecoderPool, video: bytes) -> None:
    session = decoders.create_session(video, PLAIN)
    session.open()
    _, decoder = server_and_decoder()
    decoder.suspend()
    errors: list[str] = []

    def wait() -> None:
        try:
            session.next_window()
        except AslTritonError as exc:
            errors.append(str(exc))

    thread = threading.Thread(target=wait)
    thread.start()
    assert wait_until(lambda: session._in_use.locked())
    session.close()
    thread.join(20)
    assert errors == ["the decoding of the video was given up"]
    assert wait_until(lambda: not is_decoder(decoder))


@pytest.mark.parametrize("is_in_process", [True, False], ids=["here", "there"])
def test_closed_session_reads_no_more(decoders: DecoderPool, video: bytes, is_in_process: bool) -> None:
    session = InProcessDecodeSession(video, PLAIN) if is_in_process else decoders.create_session(video, PLAIN)
    session.close()
    with pytest.raises(AslTritonError, match="was given up"):
        session.open()
    session = InProcessDecodeSession(video, PLAIN) if is_in_process else decoders.create_session(video, PLAIN)
    session.open()
    assert len(list(session.windows())) == 1 and session.next_window() is None
    for _ in range(2):
        session.close()
    with pytest.raises(AslTritonError, match="was given up"):
        session.next_window()


def test_many_videos_are_decoded_at_once(decoders: DecoderPool, video: bytes) -> None:
    expected = decode(InProcessDecodeSession(video, WindowingOptions(BSL1K, Limits())))
    matches: list[bool] = []

    def decode_once() -> None:
        matches.append(decode(decoders.create_session(video, WindowingOptions(BSL1K, Limits()))) == expected)

    threads = [threading.Thread(target=decode_once) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert matches == [True] * 12


def test_closed_pool_decodes_nothing(video: bytes) -> None:
    decoders = DecoderPool(DecoderLimits())
    session = decoders.create_session(video, PLAIN)
    session.open()
    server, decoder = server_and_decoder()
    decoder.suspend()
    decoders.close()
    assert wait_until(lambda: not is_decoder(server) and not is_decoder(decoder))
    session.close()
    with pytest.raises(AslTritonError, match="the decoders are closed"):
        decoders.create_session(video, PLAIN).open()


def test_no_process_outlives_the_client_that_started_it(video: bytes, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(video)
    (script := tmp_path / "scripts" / "start.py").parent.mkdir()
    if sys.version_info >= (3, 11):
        (tmp_path / "json.py").write_text("raise SystemExit('a stranger in the folder was imported')")
    script.write_text(
        "import sys, time; from pathlib import Path\n"
        "from asl_triton.decoding.pool import DecoderPool; from asl_triton.decoding.worker import DecoderLimits\n"
        "from asl_triton.presets import PRESETS; from asl_triton.decoding.base import WindowingOptions\n"
        "from asl_triton.video.reader import Limits\n"
        "decoders = DecoderPool(DecoderLimits())\n"
        "options = WindowingOptions(PRESETS['wlasl'], Limits())\n"
        "sessions = [decoders.create_session(sys.argv[1], options) for _ in range(3)]\n"
        "print([session.open().declared_frames for session in sessions], flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, str(script), "video.mp4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as starter:
        assert starter.stdout is not None and starter.stdout.readline() == "[100, 100, 100]\n"
        started = psutil.Process(starter.pid).children(recursive=True)
        assert len(started) == 4
        started[1].suspend()  # like one that hangs
        os.kill(starter.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(is_decoder(process) for process in started))


def test_crops_from_another_process_are_writable(decoders: DecoderPool, video: bytes) -> None:
    with decoders.create_session(video, WindowingOptions(replace(WLASL, max_frames=64), Limits())) as session:
        session.open()
        (first, _), (second, _), *_ = list(session.windows())
    assert first.frames.flags.writeable and not np.shares_memory(first.frames, second.frames)


def test_healthy_worker_decodes_the_next_video(reusing_pool: DecoderPool, video: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(video)
    films = WindowingOptions(replace(BSL1K, max_frames=64), LONG_VIDEO_LIMITS, is_film=True)
    pids, files = set[int](), set[int]()
    for source, options in ((video, PLAIN), (path, films), (video, WindowingOptions(BSL1K, Limits())), (path, PLAIN)):
        assert decode(reusing_pool.create_session(source, options)) == decode(InProcessDecodeSession(source, options))
        assert decoding() == []
        pids |= {worker.pid for worker in find_workers(reusing_pool)}
        files |= {worker.num_fds() for worker in find_workers(reusing_pool)}
    assert len(pids) == 1 and len(files) == 1
    decode(reusing_pool.create_session(video, PLAIN))  # the fifth, one too many for the same process
    assert wait_until(lambda: len(find_workers(reusing_pool)) == 1 and find_workers(reusing_pool)[0].pid not in pids)


def test_each_video_gets_its_own_process_by_default(video: bytes) -> None:
    pool, pids = DecoderPool(DecoderLimits()), []
    for _ in range(3):
        with pool.create_session(video, PLAIN) as session:
            session.open()
            pids.append(server_and_decoder()[1].pid)
            list(session.windows())
        assert wait_until(lambda: find_workers(pool) == [])
    assert len(set(pids)) == 3
    pool.close()


def test_each_video_gets_its_full_limits(video: bytes) -> None:
    seconds, bytes_more = [], []
    pool = DecoderPool(DecoderLimits(max_decode_s=7, max_memory_bytes=2**30, videos_per_process=100))
    for _ in range(20):
        with pool.create_session(video, PLAIN) as session:
            session.open()
            _, worker = server_and_decoder()
            times = worker.cpu_times()
            seconds.append(worker.rlimit(psutil.RLIMIT_CPU)[0] - times.user - times.system)
            bytes_more.append(worker.rlimit(psutil.RLIMIT_DATA)[0] - worker.memory_info().data)
            list(session.windows())
    assert worker.cpu_times().user > 0.2
    assert 5.5 < min(seconds) <= max(seconds) <= 7.1
    assert min(bytes_more) > 2**30 - 64 * 2**20
    pool.close()


def test_worker_is_replaced_after_a_failed_or_damaged_video(
    reusing_pool: DecoderPool, video: bytes, tmp_path: Path
) -> None:
    full = clip(tmp_path / "whole.mp4", 40, size="320x240")
    half = cut(tmp_path / "half.mp4", faststart(tmp_path / "fast.mp4", full), 0.6)
    too_long = WindowingOptions(WLASL, Limits(max_frames=50))

    def decode_damaged() -> None:
        assert "cut off" in decode(reusing_pool.create_session(half, PLAIN))[-1][0]

    def decode_failing() -> None:
        decode_with_error(reusing_pool.create_session(video, too_long))

    def abandon() -> None:
        with reusing_pool.create_session(video, WindowingOptions(BSL1K, Limits())) as session:
            session.open()
            session.next_window()

    for spoil in (decode_damaged, decode_failing, abandon):
        assert len(decode(reusing_pool.create_session(video, PLAIN))) == 8
        (worker,) = find_workers(reusing_pool)
        spoil()
        assert wait_until(lambda worker=worker: not is_decoder(worker))
        assert find_workers(reusing_pool) == []


def test_dead_idle_worker_fails_no_video(reusing_pool: DecoderPool, video: bytes) -> None:
    assert len(decode(reusing_pool.create_session(video, PLAIN))) == 8
    (worker,) = find_workers(reusing_pool)
    worker.kill()
    assert wait_until(lambda: not worker.is_running())
    assert len(decode(reusing_pool.create_session(video, PLAIN))) == 8


def test_one_idle_worker_is_kept_per_processor(video: bytes) -> None:
    pool = DecoderPool(DecoderLimits(videos_per_process=100))
    sessions = [pool.create_session(video, PLAIN) for _ in range(MAX_IDLE + 2)]
    for session in sessions:
        session.open()
    assert len(find_workers(pool)) == MAX_IDLE + 2
    for session in sessions:
        assert len(list(session.windows())) == 1
        session.close()
    assert wait_until(lambda: len(find_workers(pool)) == MAX_IDLE)
    pool.close()


@pytest.mark.parametrize("answers", [
    [b"\xff"], [b"[]"], [b"{}"], [b'{"num_bytes": "many"}'], [b'{"num_bytes": Infinity}'], [OPENED, b"{}"],
    *([OPENED, window] for window in (
        WINDOW % b'{"start": 0, "num_frames": 301, "edges_s": [0, 1], "shot": 0}',
        WINDOW % b'{"start": 0, "num_frames": -1, "edges_s": [0, 1], "shot": 0}',
        WINDOW % b'{"start": 0, "num_frames": 9, "edges_s": [], "shot": 0}',
        WINDOW % b'{"start": 0, "num_frames": 9, "edges_s": "none", "shot": 0}',
        WINDOW % b'{"start": [], "num_frames": 9, "edges_s": [0, 1], "shot": 0}',
    )),
])  # fmt: skip
def test_worker_that_answers_nonsense_is_a_clear_error(answers: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    connection, theirs = socket.socketpair()
    status, reports = socket.socketpair()
    pool = DecoderPool(DecoderLimits())
    monkeypatch.setattr(pool, "acquire", lambda: WorkerHandle(Connection(connection.detach()), status))
    with Connection(theirs.detach()) as worker, reports:
        for answer in answers:
            worker.send_bytes(answer)
        message = "it cannot be decoded: its decoder answers nonsense. Convert or record it again"
        assert decode_with_error(pool.create_session("clip.mp4", PLAIN, "it")) == message


def test_worker_that_keeps_too_much_memory_is_not_reused(video: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from asl_triton.decoding import worker\n"
        "worker.MAX_KEPT_BYTES = int(sys.argv[2])\n"
        "worker.work_and_exit(int(sys.argv[1]), worker.DecoderLimits(videos_per_process=100))\n"
    )
    for kept, is_reusable in ((-(2**20), False), (2**28, True)):
        pool, released = DecoderPool(DecoderLimits()), list[WorkerHandle]()
        connection, theirs = socket.socketpair()
        status, reports = socket.socketpair()
        handle = WorkerHandle(Connection(connection.detach()), status)
        monkeypatch.setattr(pool, "acquire", lambda handle=handle: handle)
        monkeypatch.setattr(pool, "release", released.append)
        command = [sys.executable, "-c", code, str(theirs.fileno()), str(kept)]
        with reports, subprocess.Popen(command, pass_fds=[theirs.fileno()]):
            theirs.close()
            assert len(decode(pool.create_session(video, PLAIN))) == 8
            assert (released == [handle]) == is_reusable
            handle.close()
