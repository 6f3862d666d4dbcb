"""Decoding in processes of their own: the same crops, and what goes wrong stays where it is."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from asl_triton.clips import crops, spanned
from asl_triton.decoder import Decoders, Decoding
from asl_triton.decoder_process import DecoderLimits
from asl_triton.errors import ServerError, VideoError
from asl_triton.presets import PRESETS, Preset
from asl_triton.video import Limits, open_video

from .videos import clip, cut, faststart, huge

LIMITS = DecoderLimits()


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    shared = Decoders()
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 100, rate="30").read_bytes()


def of_this_process() -> list[psutil.Process]:
    """The server of decoders, and the decoders."""
    return [process for process in psutil.Process().children(recursive=True) if is_decoder(process)]


def is_decoder(process: psutil.Process) -> bool:
    try:
        return "asl_triton.decoder_process" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def server_and_decoder() -> tuple[psutil.Process, psutil.Process]:
    """Of the one video that is being decoded; those of earlier tests are ending."""
    assert wait_until(lambda: len(of_this_process()) == 2)
    server, decoder = of_this_process()
    return server, decoder


def wait_until(is_true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not (reached := is_true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return reached


@pytest.mark.parametrize("preset", [*PRESETS.values(), replace(PRESETS["wlasl"], max_frames=64)], ids=lambda p: p.name)
def test_windows_are_those_of_decoding_here(decoders: Decoders, video: bytes, preset: Preset) -> None:
    with open_video(video) as opened:
        here = list(spanned(crops(opened, preset, 1000), preset, opened.frame_rate))
    with decoders.start(video, preset, LIMITS) as decoding:
        assert decoding.crops_held() > 0
        there = list(decoding.windows())
    assert (decoding.num_frames, decoding.duration_s) == (opened.num_frames, opened.duration_s)
    for (ours, our_span), (theirs, their_span) in zip(here, there, strict=True):
        assert (ours.start, our_span.num_frames) == (theirs.start, their_span.num_frames)
        assert np.array_equal(ours.frames, theirs.frames)
        assert np.array_equal(our_span.edges_s, their_span.edges_s)


def test_warnings_come_along(decoders: Decoders, tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", 40, size="320x240")
    half = cut(tmp_path / "half.mp4", faststart(tmp_path / "fast.mp4", whole), 0.6)
    with decoders.start(half.read_bytes(), PRESETS["wlasl"], LIMITS) as decoding:
        decoding.crops_held()
        assert len(list(decoding.windows())) == 1
    assert "cut off" in decoding.warnings[0]


@pytest.mark.parametrize(
    ("content", "limits", "sentence"),
    [
        (b"", LIMITS, r"it is empty \(0 bytes\)"),
        (b"no video at all", LIMITS, "it cannot be read as a video: it is something else"),
        (None, DecoderLimits(Limits(max_bytes=1000)), "it is larger than 1,000 bytes, the limit"),
        (None, DecoderLimits(Limits(max_frames=50)), "it has more than 50 frames, the limit"),
        (None, DecoderLimits(Limits(max_pixels=1000)), "it is 64 x 48 pixels, beyond the limit of 1,000"),
    ],
)
def test_what_is_beyond_a_limit_is_one_sentence(
    decoders: Decoders, video: bytes, content: bytes | None, limits: DecoderLimits, sentence: str
) -> None:
    with (
        pytest.raises(VideoError, match=sentence) as failure,
        decoders.start(video if content is None else content, PRESETS["wlasl"], limits, "it") as decoding,
    ):
        decoding.crops_held()
    assert "\n" not in str(failure.value)


def test_a_video_that_wants_too_much_memory_is_one_sentence(decoders: Decoders, tmp_path: Path) -> None:
    video = huge(tmp_path / "huge.avi", "6000x4000").read_bytes()
    limits = DecoderLimits(max_memory_bytes=144 * 2**20)
    with decoders.start(video, PRESETS["wlasl"], limits) as decoding:
        decoding.crops_held()
        with pytest.raises(VideoError, match="the video takes more memory to decode than there is"):
            decoding.next_window()


def test_a_decoder_that_dies_is_one_sentence_and_the_next_video_is_decoded(decoders: Decoders, video: bytes) -> None:
    with decoders.start(video, PRESETS["bsl1k"], LIMITS, "it") as decoding:
        decoding.crops_held()
        server, decoder = server_and_decoder()
        decoder.send_signal(signal.SIGSEGV)
        with pytest.raises(VideoError, match=r"^it cannot be decoded: it ends the decoder \(SIGSEGV\)"):
            decoding.next_window()
    with decoders.start(video, PRESETS["bsl1k"], LIMITS) as decoding:
        decoding.crops_held()
        assert len(list(decoding.windows())) == 2
    assert of_this_process()[0] == server


def test_a_decoder_that_computes_too_long_is_ended(decoders: Decoders, video: bytes) -> None:
    with decoders.start(video, PRESETS["wlasl"], LIMITS, "it") as decoding:
        decoding.crops_held()
        server_and_decoder()[1].send_signal(signal.SIGXCPU)
        with pytest.raises(VideoError, match="it takes more than 60 s to decode, the limit"):
            decoding.next_window()


def test_a_server_that_died_costs_no_video_and_is_started_again(decoders: Decoders, video: bytes) -> None:
    with decoders.start(video, PRESETS["wlasl"], LIMITS) as decoding:
        decoding.crops_held()
        server, _ = server_and_decoder()
        server.kill()
        assert len(list(decoding.windows())) == 1
    with decoders.start(video, PRESETS["wlasl"], LIMITS) as decoding:
        decoding.crops_held()
        assert len(list(decoding.windows())) == 1
    assert server not in of_this_process()


def test_a_video_whose_processes_all_died_is_to_be_sent_again(decoders: Decoders, video: bytes) -> None:
    with decoders.start(video, PRESETS["wlasl"], LIMITS) as decoding:
        decoding.crops_held()
        for process in server_and_decoder():
            process.kill()
        with pytest.raises(ServerError, match="the decoding of the video was interrupted: send it again"):
            list(decoding.windows())


def test_ending_a_decoding_wakes_who_waits_for_it(decoders: Decoders, video: bytes) -> None:
    decoding = decoders.start(video, PRESETS["wlasl"], LIMITS)
    decoding.crops_held()
    _, decoder = server_and_decoder()
    decoder.suspend()
    said: list[str] = []

    def wait(waited: Decoding) -> None:
        try:
            waited.next_window()
        except ServerError as exc:
            said.append(str(exc))

    waiting = threading.Thread(target=wait, args=(decoding,))
    waiting.start()
    decoding.end()
    waiting.join(20)
    assert len(said) == 1
    decoding.close()
    assert wait_until(lambda: not is_decoder(decoder))


def test_many_at_once(decoders: Decoders, video: bytes) -> None:
    found: list[int] = []

    def decode() -> None:
        with decoders.start(video, PRESETS["bsl1k"], LIMITS) as decoding:
            decoding.crops_held()
            found.append(sum(len(window.frames) for window, _ in decoding.windows()))

    threads = [threading.Thread(target=decode) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [128] * 12


def test_nothing_outlives_whoever_started_it(video: bytes, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(video)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from asl_triton.decoder import Decoders; from asl_triton.decoder_process import DecoderLimits\n"
        "from asl_triton.presets import PRESETS\n"
        "decoders = Decoders()\n"
        "decoding = decoders.start(Path(sys.argv[1]).read_bytes(), PRESETS['wlasl'], DecoderLimits())\n"
        "print(decoding.crops_held(), flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "video.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None and starter.stdout.readline() == "100\n"
        started = psutil.Process(starter.pid).children(recursive=True)
        assert len(started) == 2
        os.kill(starter.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(is_decoder(process) for process in started))
