"""Decoding in processes of their own: the same crops, and what goes wrong stays where it is."""

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
def reusing() -> Iterator[DecoderPool]:
    pool = DecoderPool(DecoderLimits(max_decode_s=None, max_window_s=30, videos_per_process=4))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 100, rate="30").read_bytes()


def own(pool: DecoderPool) -> list[psutil.Process]:
    """The workers of a pool."""
    return [worker for worker in workers() if pool._server is not None and worker.ppid() == pool._server.pid]


def both(pool: DecoderPool, source: Source, options: WindowingOptions, name: str | None = None) -> tuple[Any, Any]:
    """All that a session says of a video which is decoded here, and with a pool."""
    return whole(InProcessDecodeSession(source, options, name)), whole(pool.create_session(source, options, name))


def whole(session: DecodeSession) -> list[Any]:
    """All that a session says of a video: its measures, its windows, and what was read of it."""
    with session:
        told: list[Any] = [asdict(session.open())]
        for window, span in session.windows():
            told.append((window.start, window.frames.shape, window.frames.tobytes()))
            told.append((span.start, span.num_frames, span.shot, span.edges_s.tolist()))
    assert session.decode_s > 0
    frames = (session.num_frames, session.lost_frames)
    return [*told, session.name, frames, session.duration_s, session.share_read, session.warnings]


def sentence(session: DecodeSession) -> str:
    """What is wrong with a video."""
    with pytest.raises(VideoError) as failure:
        whole(session)
    return str(failure.value)


@pytest.mark.parametrize("options", [
    *(WindowingOptions(preset, Limits()) for preset in PRESETS.values()),
    WindowingOptions(replace(WLASL, max_frames=64), Limits()),
    WindowingOptions(replace(WLASL, max_frames=64), LONG_VIDEO_LIMITS, is_film=True),
], ids=lambda c: f"{c.preset.name}-{c.preset.max_frames}-{c.is_film}")  # fmt: skip
def test_windows_are_those_of_decoding_here(
    decoders: DecoderPool, video: bytes, tmp_path: Path, options: WindowingOptions
) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(video)
    for source in (video, memoryview(video), path, str(path)):
        here, there = both(decoders, source, options)
        assert here == there
        assert len(here) > 6


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_windows_of_real_clips_are_those_of_decoding_here(
    decoders: DecoderPool, shared_folder: Path, preset: Preset
) -> None:
    for path in sorted((shared_folder / "wlasl" / "videos").iterdir()):
        for options in (WindowingOptions(preset, Limits()), WindowingOptions(preset, LONG_VIDEO_LIMITS, is_film=True)):
            here, there = both(decoders, path, options, "it")
            assert here == there


def test_films_of_many_shots_and_uneven_frames_are_cut_alike(decoders: DecoderPool, tmp_path: Path) -> None:
    dark, light = [60] * 40, [190] * 30
    sources = (levels(tmp_path / "shots.mkv", [*dark, *light, *dark]), uneven(tmp_path / "uneven.mp4", 100))
    for source in sources:
        film = WindowingOptions(
            replace(WLASL, window_frames=32, stride_frames=16, max_frames=32), LONG_VIDEO_LIMITS, is_film=True
        )
        here, there = both(decoders, source, film)
        assert here == there
    assert [span[2] for span in whole(decoders.create_session(sources[0], film))[2:-5:2]] == [0, 0, 1, 2, 2]


def test_warnings_come_along(decoders: DecoderPool, tmp_path: Path) -> None:
    full = clip(tmp_path / "whole.mp4", 40, size="320x240")
    half = cut(tmp_path / "half.mp4", faststart(tmp_path / "fast.mp4", full), 0.6)
    for source in (half, half.read_bytes()):
        assert whole(decoders.create_session(source, PLAIN)) == whole(InProcessDecodeSession(source, PLAIN))
    assert "cut off" in whole(decoders.create_session(half, PLAIN))[-1][0]


@pytest.mark.parametrize("kind", NOT_VIDEOS)
def test_what_is_no_video_is_the_same_sentence_as_here(decoders: DecoderPool, tmp_path: Path, kind: str) -> None:
    make, says = NOT_VIDEOS[kind]
    path = make(tmp_path / "clip.mp4")
    sources: list[Source] = [path, *([path.read_bytes()] if path.is_file() else [])]
    for source in sources:
        told = sentence(decoders.create_session(source, PLAIN))
        assert told == sentence(InProcessDecodeSession(source, PLAIN)) and says in told
        named = sentence(decoders.create_session(source, PLAIN, "mine \udcff"))
        assert named == sentence(InProcessDecodeSession(source, PLAIN, "mine \udcff")) and named.startswith(
            ("mine \udcff", "there is no file mine", "cannot read mine")
        )


@pytest.mark.parametrize("name", [b"not \xff UTF-8.mp4", b"-dash.mp4", b"new\nline.mp4", b"concat:x.mp4"])
def test_odd_name_is_only_a_name(
    decoders: DecoderPool, video: bytes, tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    path.write_bytes(video)
    assert whole(decoders.create_session(path, PLAIN)) == whole(InProcessDecodeSession(path, PLAIN))


def test_name_without_meaning_to_the_system_is_a_sentence(decoders: DecoderPool) -> None:
    assert sentence(decoders.create_session("a\0b.mp4", PLAIN)) == sentence(InProcessDecodeSession("a\0b.mp4", PLAIN))
    assert sentence(decoders.create_session("\ud800.mp4", PLAIN)).startswith("cannot read \ud800.mp4: ")


@pytest.mark.parametrize("limits", [Limits(max_bytes=1000), Limits(max_frames=50), Limits(max_pixels=1000)], ids=str)
def test_what_is_beyond_a_limit_is_the_same_sentence_as_here(
    decoders: DecoderPool, video: bytes, tmp_path: Path, limits: Limits
) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(video)
    for source in (video, path):
        told = sentence(decoders.create_session(source, WindowingOptions(WLASL, limits), "it"))
        assert told == sentence(InProcessDecodeSession(source, WindowingOptions(WLASL, limits), "it"))
        assert told.startswith("it ") and "limit" in told and "\n" not in told


def test_too_many_frames_may_be_told_before_one_is_decoded(decoders: DecoderPool, video: bytes) -> None:
    early = WindowingOptions(WLASL, Limits(max_frames=50), refuses_early=True)
    with decoders.create_session(video, early, "it") as session:
        with pytest.raises(VideoError, match="it has more than 50 frames, the limit"):
            session.open()
        assert session.num_frames == 0


def test_a_video_that_wants_too_much_memory_is_one_sentence(tmp_path: Path) -> None:
    path = huge(tmp_path / "huge.avi", "6000x4000")
    decoders = DecoderPool(DecoderLimits(max_memory_bytes=96 * 2**20))
    with decoders.create_session(path, PLAIN, "it") as session:
        session.open()
        with pytest.raises(VideoError, match="it takes more memory to decode than is available"):
            session.next_window()
    decoders.close()


@pytest.mark.parametrize(("sign", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT")])
def test_a_decoder_that_dies_is_one_sentence_and_the_next_video_is_decoded(
    decoders: DecoderPool, video: bytes, sign: signal.Signals, name: str
) -> None:
    with decoders.create_session(video, PLAIN, "it") as session:
        session.open()
        server, decoder = server_and_decoder()
        decoder.send_signal(sign)
        with pytest.raises(VideoError, match=rf"^it cannot be decoded: it ends the decoder \({name}\). Convert"):
            session.next_window()
    assert len(whole(decoders.create_session(video, PLAIN))) == 8
    assert server.is_running()


def test_a_decoder_that_computes_too_long_is_ended(decoders: DecoderPool, video: bytes) -> None:
    with decoders.create_session(video, PLAIN, "it") as session:
        session.open()
        server_and_decoder()[1].send_signal(signal.SIGXCPU)
        with pytest.raises(VideoError, match="it takes more than 60 s to decode, the limit"):
            session.next_window()


def test_a_decoder_that_hangs_costs_its_video_alone(video: bytes) -> None:
    decoders = DecoderPool(DecoderLimits(max_decode_s=None, max_window_s=6))
    says = r"^it cannot be decoded: the decoder stood still for 6 s. Convert .* give it longer \(--decode-timeout\)"
    with decoders.create_session(video, PLAIN, "it") as session:
        session.open()
        _, decoder = server_and_decoder()
        decoder.suspend()
        with pytest.raises(VideoError, match=says):
            session.next_window()
    assert wait_until(lambda: not is_decoder(decoder))
    with decoders.create_session(video, PLAIN, "it") as session:  # and one that computes without end, if nobody looks
        session.open()
        allowed, _ = server_and_decoder()[1].rlimit(psutil.RLIMIT_CPU)
        assert 6 <= allowed <= 9
        server_and_decoder()[1].send_signal(signal.SIGXCPU)
        with pytest.raises(VideoError, match=says):
            session.next_window()
    assert len(whole(decoders.create_session(video, PLAIN))) == 8
    decoders.close()


def test_interruptions_are_for_who_started_the_decoders(video: bytes) -> None:
    decoders = DecoderPool(DecoderLimits())
    before = of_this_process()
    decoders.warm_up()
    assert wait_until(lambda: len(of_this_process()) > len(before))
    (interrupted,) = set(of_this_process()) - set(before)
    for sign in (signal.SIGINT, signal.SIGTERM):  # while it starts
        interrupted.send_signal(sign)
    with decoders.create_session(video, PLAIN) as session:
        session.open()
        for process in of_this_process():
            for sign in (signal.SIGINT, signal.SIGTERM):
                process.send_signal(sign)
        assert len(list(session.windows())) == 1
    assert interrupted.is_running()
    decoders.close()
    assert not interrupted.is_running()


def test_a_server_that_died_costs_no_video_and_is_started_again(decoders: DecoderPool, video: bytes) -> None:
    with decoders.create_session(video, PLAIN) as session:
        session.open()
        server, _ = server_and_decoder()
        server.kill()
        assert len(list(session.windows())) == 1
    assert len(whole(decoders.create_session(video, PLAIN))) == 8
    assert not is_decoder(server)


def test_a_video_whose_processes_all_died_is_to_be_sent_again(decoders: DecoderPool, video: bytes) -> None:
    with decoders.create_session(video, PLAIN) as session:
        session.open()
        for process in server_and_decoder():
            process.kill()
        with pytest.raises(ServerError, match="the decoding of the video was interrupted: send it again"):
            list(session.windows())


def test_closing_a_reading_wakes_who_waits_for_it(decoders: DecoderPool, video: bytes) -> None:
    session = decoders.create_session(video, PLAIN)
    session.open()
    _, decoder = server_and_decoder()
    decoder.suspend()
    said: list[str] = []

    def wait() -> None:
        try:
            session.next_window()
        except AslTritonError as exc:
            said.append(str(exc))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert wait_until(lambda: session._in_use.locked())
    session.close()
    waiting.join(20)
    assert said == ["the decoding of the video was given up"]
    assert wait_until(lambda: not is_decoder(decoder))


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "there"])
def test_closed_reading_reads_no_more(decoders: DecoderPool, video: bytes, is_here: bool) -> None:
    session = InProcessDecodeSession(video, PLAIN) if is_here else decoders.create_session(video, PLAIN)
    session.close()
    with pytest.raises(AslTritonError, match="was given up"):
        session.open()
    session = InProcessDecodeSession(video, PLAIN) if is_here else decoders.create_session(video, PLAIN)
    session.open()
    assert len(list(session.windows())) == 1 and session.next_window() is None
    for _ in range(2):
        session.close()
    with pytest.raises(AslTritonError, match="was given up"):
        session.next_window()


def test_many_at_once(decoders: DecoderPool, video: bytes) -> None:
    expected = whole(InProcessDecodeSession(video, WindowingOptions(BSL1K, Limits())))
    found: list[bool] = []

    def decode() -> None:
        found.append(whole(decoders.create_session(video, WindowingOptions(BSL1K, Limits()))) == expected)

    threads = [threading.Thread(target=decode) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12


def test_nothing_is_decoded_when_the_decoders_are_closed(video: bytes) -> None:
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


def test_nothing_outlives_whoever_started_it(video: bytes, tmp_path: Path) -> None:
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
        started[1].suspend()  # as one that hangs
        os.kill(starter.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(is_decoder(process) for process in started))


def test_crops_of_another_process_may_be_written_to(decoders: DecoderPool, video: bytes) -> None:
    with decoders.create_session(video, WindowingOptions(replace(WLASL, max_frames=64), Limits())) as session:
        session.open()
        (first, _), (second, _), *_ = list(session.windows())
    assert first.frames.flags.writeable and not np.shares_memory(first.frames, second.frames)


def test_healthy_worker_decodes_the_next_video(reusing: DecoderPool, video: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(video)
    films = WindowingOptions(replace(BSL1K, max_frames=64), LONG_VIDEO_LIMITS, is_film=True)
    pids, files = set[int](), set[int]()
    for source, options in ((video, PLAIN), (path, films), (video, WindowingOptions(BSL1K, Limits())), (path, PLAIN)):
        assert whole(reusing.create_session(source, options)) == whole(InProcessDecodeSession(source, options))
        assert decoding() == []
        pids |= {worker.pid for worker in own(reusing)}
        files |= {worker.num_fds() for worker in own(reusing)}
    assert len(pids) == 1 and len(files) == 1
    whole(reusing.create_session(video, PLAIN))  # the fifth: one too many for the same process
    assert wait_until(lambda: len(own(reusing)) == 1 and own(reusing)[0].pid not in pids)


def test_one_video_per_process_is_one(video: bytes) -> None:
    pool, pids = DecoderPool(DecoderLimits()), []
    for _ in range(3):
        with pool.create_session(video, PLAIN) as session:
            session.open()
            pids.append(server_and_decoder()[1].pid)
            list(session.windows())
        assert wait_until(lambda: own(pool) == [])
    assert len(set(pids)) == 3
    pool.close()


def test_each_video_has_the_whole_of_its_limits(video: bytes) -> None:
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


def test_worker_of_a_video_that_failed_or_is_damaged_is_replaced(
    reusing: DecoderPool, video: bytes, tmp_path: Path
) -> None:
    full = clip(tmp_path / "whole.mp4", 40, size="320x240")
    half = cut(tmp_path / "half.mp4", faststart(tmp_path / "fast.mp4", full), 0.6)
    too_long = WindowingOptions(WLASL, Limits(max_frames=50))

    def damaged() -> None:
        assert "cut off" in whole(reusing.create_session(half, PLAIN))[-1][0]

    def failed() -> None:
        sentence(reusing.create_session(video, too_long))

    def left_alone() -> None:
        with reusing.create_session(video, WindowingOptions(BSL1K, Limits())) as session:
            session.open()
            session.next_window()

    for spoil in (damaged, failed, left_alone):
        assert len(whole(reusing.create_session(video, PLAIN))) == 8
        (worker,) = own(reusing)
        spoil()
        assert wait_until(lambda worker=worker: not is_decoder(worker))
        assert own(reusing) == []


def test_idle_worker_that_died_costs_no_video(reusing: DecoderPool, video: bytes) -> None:
    assert len(whole(reusing.create_session(video, PLAIN))) == 8
    (worker,) = own(reusing)
    worker.kill()
    assert wait_until(lambda: not worker.is_running())
    assert len(whole(reusing.create_session(video, PLAIN))) == 8


def test_as_many_workers_wait_as_there_are_processors(video: bytes) -> None:
    pool = DecoderPool(DecoderLimits(videos_per_process=100))
    sessions = [pool.create_session(video, PLAIN) for _ in range(MAX_IDLE + 2)]
    for session in sessions:
        session.open()
    assert len(own(pool)) == MAX_IDLE + 2
    for session in sessions:
        assert len(list(session.windows())) == 1
        session.close()
    assert wait_until(lambda: len(own(pool)) == MAX_IDLE)
    pool.close()


@pytest.mark.parametrize("answers", [
    [b"\xff"], [b"[]"], [b"{}"], [b'{"num_bytes": "many"}'], [b'{"num_bytes": Infinity}'], [OPENED, b"{}"],
    *([OPENED, place] for place in (
        WINDOW % b'{"start": 0, "num_frames": 301, "edges_s": [0, 1], "shot": 0}',
        WINDOW % b'{"start": 0, "num_frames": -1, "edges_s": [0, 1], "shot": 0}',
        WINDOW % b'{"start": 0, "num_frames": 9, "edges_s": [], "shot": 0}',
        WINDOW % b'{"start": 0, "num_frames": 9, "edges_s": "none", "shot": 0}',
        WINDOW % b'{"start": [], "num_frames": 9, "edges_s": [0, 1], "shot": 0}',
    )),
])  # fmt: skip
def test_worker_that_answers_nonsense_is_one_sentence(answers: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    connection, theirs = socket.socketpair()
    status, reports = socket.socketpair()
    pool = DecoderPool(DecoderLimits())
    monkeypatch.setattr(pool, "acquire", lambda: WorkerHandle(Connection(connection.detach()), status))
    with Connection(theirs.detach()) as worker, reports:
        for answer in answers:
            worker.send_bytes(answer)
        says = "it cannot be decoded: its decoder answers nonsense. Convert or record it again"
        assert sentence(pool.create_session("clip.mp4", PLAIN, "it")) == says


def test_worker_that_keeps_too_much_memory_is_not_used_again(video: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
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
            assert len(whole(pool.create_session(video, PLAIN))) == 8
            assert (released == [handle]) == is_reusable
            handle.close()
