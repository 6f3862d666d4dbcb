"""Decoding in processes of their own: the same crops, and what goes wrong stays where it is."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from asl_triton.decoding.base import DecodeSession, WindowingOptions
from asl_triton.decoding.in_process import InProcessDecodeSession
from asl_triton.decoding.pool import DecoderPool
from asl_triton.decoding.worker import DecoderLimits
from asl_triton.errors import AslTritonError, ServerError, VideoError
from asl_triton.presets import PRESETS, Preset
from asl_triton.video.reader import LONG_VIDEO_LIMITS, Limits, Source
from tests.client.decoder_processes import is_decoder, of_this_process, server_and_decoder, wait_until
from tests.client.video.test_reader import NOT_VIDEOS
from tests.client.videos import clip, cut, faststart, huge, levels, uneven

WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]
PLAIN = WindowingOptions(WLASL, Limits())


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    shared = DecoderPool(DecoderLimits())
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 100, rate="30").read_bytes()


def whole(reading: DecodeSession) -> list[Any]:
    """All that a reading says of a video: its measures, its windows, and what was read of it."""
    with reading:
        told: list[Any] = [asdict(reading.open())]
        for window, span in reading.windows():
            told.append((window.start, window.frames.shape, window.frames.tobytes()))
            told.append((span.start, span.num_frames, span.shot, span.edges_s.tolist()))
    assert reading.decode_s > 0
    return [*told, reading.name, reading.num_frames, reading.duration_s, reading.share_read, reading.warnings]


def sentence(reading: DecodeSession) -> str:
    """What is wrong with a video."""
    with pytest.raises(VideoError) as failure:
        whole(reading)
    return str(failure.value)


@pytest.mark.parametrize("cutting", [
    *(WindowingOptions(preset, Limits()) for preset in PRESETS.values()),
    WindowingOptions(replace(WLASL, max_frames=64), Limits()),
    WindowingOptions(replace(WLASL, max_frames=64), LONG_VIDEO_LIMITS, is_film=True),
], ids=lambda c: f"{c.preset.name}-{c.preset.max_frames}-{c.is_film}")  # fmt: skip
def test_windows_are_those_of_decoding_here(
    decoders: DecoderPool, video: bytes, tmp_path: Path, cutting: WindowingOptions
) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(video)
    for source in (video, memoryview(video), path, str(path)):
        here, there = (whole(reader(source, cutting, None)) for reader in (InProcessDecodeSession, decoders.reading))
        assert here == there
        assert len(here) > 6


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_windows_of_real_clips_are_those_of_decoding_here(
    decoders: DecoderPool, shared_folder: Path, preset: Preset
) -> None:
    for path in sorted((shared_folder / "wlasl" / "videos").iterdir()):
        for cutting in (WindowingOptions(preset, Limits()), WindowingOptions(preset, LONG_VIDEO_LIMITS, is_film=True)):
            here, there = (whole(reader(path, cutting, "it")) for reader in (InProcessDecodeSession, decoders.reading))
            assert here == there


def test_films_of_many_shots_and_uneven_frames_are_cut_alike(decoders: DecoderPool, tmp_path: Path) -> None:
    dark, light = [60] * 40, [190] * 30
    sources = (levels(tmp_path / "shots.mkv", [*dark, *light, *dark]), uneven(tmp_path / "uneven.mp4", 100))
    for source in sources:
        film = WindowingOptions(
            replace(WLASL, window_frames=32, stride_frames=16, max_frames=32), LONG_VIDEO_LIMITS, is_film=True
        )
        here, there = (whole(reader(source, film, None)) for reader in (InProcessDecodeSession, decoders.reading))
        assert here == there
    assert [span[2] for span in whole(decoders.reading(sources[0], film))[2:-5:2]] == [0, 0, 1, 2, 2]


def test_warnings_come_along(decoders: DecoderPool, tmp_path: Path) -> None:
    full = clip(tmp_path / "whole.mp4", 40, size="320x240")
    half = cut(tmp_path / "half.mp4", faststart(tmp_path / "fast.mp4", full), 0.6)
    for source in (half, half.read_bytes()):
        assert whole(decoders.reading(source, PLAIN)) == whole(InProcessDecodeSession(source, PLAIN))
    assert "cut off" in whole(decoders.reading(half, PLAIN))[-1][0]


@pytest.mark.parametrize("kind", NOT_VIDEOS)
def test_what_is_no_video_is_the_same_sentence_as_here(decoders: DecoderPool, tmp_path: Path, kind: str) -> None:
    make, says = NOT_VIDEOS[kind]
    path = make(tmp_path / "clip.mp4")
    sources: list[Source] = [path, *([path.read_bytes()] if path.is_file() else [])]
    for source in sources:
        told = sentence(decoders.reading(source, PLAIN))
        assert told == sentence(InProcessDecodeSession(source, PLAIN)) and says in told
        named = sentence(decoders.reading(source, PLAIN, "mine \udcff"))
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
    assert whole(decoders.reading(path, PLAIN)) == whole(InProcessDecodeSession(path, PLAIN))


def test_name_without_meaning_to_the_system_is_a_sentence(decoders: DecoderPool) -> None:
    assert sentence(decoders.reading("a\0b.mp4", PLAIN)) == sentence(InProcessDecodeSession("a\0b.mp4", PLAIN))
    assert sentence(decoders.reading("\ud800.mp4", PLAIN)).startswith("cannot read \ud800.mp4: ")


@pytest.mark.parametrize("limits", [Limits(max_bytes=1000), Limits(max_frames=50), Limits(max_pixels=1000)], ids=str)
def test_what_is_beyond_a_limit_is_the_same_sentence_as_here(
    decoders: DecoderPool, video: bytes, tmp_path: Path, limits: Limits
) -> None:
    (path := tmp_path / "clip.mp4").write_bytes(video)
    for source in (video, path):
        told = sentence(decoders.reading(source, WindowingOptions(WLASL, limits), "it"))
        assert told == sentence(InProcessDecodeSession(source, WindowingOptions(WLASL, limits), "it"))
        assert told.startswith("it ") and "limit" in told and "\n" not in told


def test_too_many_frames_may_be_told_before_one_is_decoded(decoders: DecoderPool, video: bytes) -> None:
    early = WindowingOptions(WLASL, Limits(max_frames=50), refuses_early=True)
    with decoders.reading(video, early, "it") as reading:
        with pytest.raises(VideoError, match="it has more than 50 frames, the limit"):
            reading.open()
        assert reading.num_frames == 0


def test_a_video_that_wants_too_much_memory_is_one_sentence(tmp_path: Path) -> None:
    path = huge(tmp_path / "huge.avi", "6000x4000")
    decoders = DecoderPool(DecoderLimits(max_memory_bytes=144 * 2**20))
    with decoders.reading(path, PLAIN, "it") as reading:
        reading.open()
        with pytest.raises(VideoError, match="it takes more memory to decode than there is"):
            reading.next_window()
    decoders.close()


@pytest.mark.parametrize(("sign", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT")])
def test_a_decoder_that_dies_is_one_sentence_and_the_next_video_is_decoded(
    decoders: DecoderPool, video: bytes, sign: signal.Signals, name: str
) -> None:
    with decoders.reading(video, PLAIN, "it") as reading:
        reading.open()
        server, decoder = server_and_decoder()
        decoder.send_signal(sign)
        with pytest.raises(VideoError, match=rf"^it cannot be decoded: it ends the decoder \({name}\). Convert"):
            reading.next_window()
    assert len(whole(decoders.reading(video, PLAIN))) == 8
    assert server.is_running()


def test_a_decoder_that_computes_too_long_is_ended(decoders: DecoderPool, video: bytes) -> None:
    with decoders.reading(video, PLAIN, "it") as reading:
        reading.open()
        server_and_decoder()[1].send_signal(signal.SIGXCPU)
        with pytest.raises(VideoError, match="it takes more than 60 s to decode, the limit"):
            reading.next_window()


def test_a_decoder_that_hangs_costs_its_video_alone(video: bytes) -> None:
    decoders = DecoderPool(DecoderLimits(max_decode_s=None, max_window_s=2))
    says = r"^it cannot be decoded: the decoder stood still for 2 s. Convert .* give it longer \(--decode-timeout\)"
    with decoders.reading(video, PLAIN, "it") as reading:
        reading.open()
        _, decoder = server_and_decoder()
        decoder.suspend()
        with pytest.raises(VideoError, match=says):
            reading.next_window()
    assert wait_until(lambda: not is_decoder(decoder))
    with decoders.reading(video, PLAIN, "it") as reading:  # and one that computes without end, if nobody looks
        reading.open()
        allowed, _ = server_and_decoder()[1].rlimit(psutil.RLIMIT_CPU)
        assert 2 <= allowed <= 5
        server_and_decoder()[1].send_signal(signal.SIGXCPU)
        with pytest.raises(VideoError, match=says):
            reading.next_window()
    assert len(whole(decoders.reading(video, PLAIN))) == 8
    decoders.close()


def test_interruptions_are_for_who_started_the_decoders(video: bytes) -> None:
    decoders = DecoderPool(DecoderLimits())
    decoders.warm_up()
    assert wait_until(lambda: of_this_process() != [])
    interrupted = of_this_process()[-1]
    for sign in (signal.SIGINT, signal.SIGTERM):  # while it starts
        interrupted.send_signal(sign)
    with decoders.reading(video, PLAIN) as reading:
        reading.open()
        for process in of_this_process():
            for sign in (signal.SIGINT, signal.SIGTERM):
                process.send_signal(sign)
        assert len(list(reading.windows())) == 1
    assert interrupted.is_running()
    decoders.close()
    assert not interrupted.is_running()


def test_a_server_that_died_costs_no_video_and_is_started_again(decoders: DecoderPool, video: bytes) -> None:
    with decoders.reading(video, PLAIN) as reading:
        reading.open()
        server, _ = server_and_decoder()
        server.kill()
        assert len(list(reading.windows())) == 1
    assert len(whole(decoders.reading(video, PLAIN))) == 8
    assert not is_decoder(server)


def test_a_video_whose_processes_all_died_is_to_be_sent_again(decoders: DecoderPool, video: bytes) -> None:
    with decoders.reading(video, PLAIN) as reading:
        reading.open()
        for process in server_and_decoder():
            process.kill()
        with pytest.raises(ServerError, match="the decoding of the video was interrupted: send it again"):
            list(reading.windows())


def test_closing_a_reading_wakes_who_waits_for_it(decoders: DecoderPool, video: bytes) -> None:
    reading = decoders.reading(video, PLAIN)
    reading.open()
    _, decoder = server_and_decoder()
    decoder.suspend()
    said: list[str] = []

    def wait() -> None:
        try:
            reading.next_window()
        except AslTritonError as exc:
            said.append(str(exc))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert wait_until(lambda: reading._in_use.locked())
    reading.close()
    waiting.join(20)
    assert said == ["the decoding of the video was given up"]
    assert wait_until(lambda: not is_decoder(decoder))


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "there"])
def test_closed_reading_reads_no_more(decoders: DecoderPool, video: bytes, is_here: bool) -> None:
    reading = InProcessDecodeSession(video, PLAIN) if is_here else decoders.reading(video, PLAIN)
    reading.close()
    with pytest.raises(AslTritonError, match="was given up"):
        reading.open()
    reading = InProcessDecodeSession(video, PLAIN) if is_here else decoders.reading(video, PLAIN)
    reading.open()
    assert len(list(reading.windows())) == 1 and reading.next_window() is None
    for _ in range(2):
        reading.close()
    with pytest.raises(AslTritonError, match="was given up"):
        reading.next_window()


def test_many_at_once(decoders: DecoderPool, video: bytes) -> None:
    expected = whole(InProcessDecodeSession(video, WindowingOptions(BSL1K, Limits())))
    found: list[bool] = []

    def decode() -> None:
        found.append(whole(decoders.reading(video, WindowingOptions(BSL1K, Limits()))) == expected)

    threads = [threading.Thread(target=decode) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12


def test_nothing_is_decoded_when_the_decoders_are_closed(video: bytes) -> None:
    decoders = DecoderPool(DecoderLimits())
    reading = decoders.reading(video, PLAIN)
    reading.open()
    server, decoder = server_and_decoder()
    decoder.suspend()
    decoders.close()
    assert wait_until(lambda: not is_decoder(server) and not is_decoder(decoder))
    reading.close()
    with pytest.raises(AslTritonError, match="the decoders are closed"):
        decoders.reading(video, PLAIN).open()


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
        "readings = [decoders.reading(sys.argv[1], WindowingOptions(PRESETS['wlasl'], Limits())) for _ in range(3)]\n"
        "print([reading.open().declared_frames for reading in readings], flush=True); time.sleep(60)\n"
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
    with decoders.reading(video, WindowingOptions(replace(WLASL, max_frames=64), Limits())) as reading:
        reading.open()
        (first, _), (second, _), *_ = list(reading.windows())
    assert first.frames.flags.writeable and not np.shares_memory(first.frames, second.frames)
