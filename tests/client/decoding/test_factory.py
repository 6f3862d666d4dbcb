"""Recognizers that decode in worker processes: same answers as with threads, and bad videos fail alone."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from asl_triton.decoding import factory as decoding
from asl_triton.decoding.factory import DecodeIn
from asl_triton.errors import AslTritonError, VideoError
from asl_triton.presets import PRESETS, Preset
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.pipeline import ClipPipeline
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.results import Recognition, Timeline
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.reader import Limits
from asl_triton_demo.signer import render, write_video
from tests.client import videos
from tests.client.decoder_processes import decoders, is_decoder, of_this_process, wait_until, workers
from tests.client.recognizer.test_upload import Server, sign_model
from tests.client.served import bright, fake, fake_steps
from tests.paths import ROOT

DECODE_MODES: tuple[DecodeIn, ...] = ("threads", "processes")
WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]


def run_with_recognizer(
    ask: Callable[[AsyncRecognizer], Coroutine[Any, Any, Any]],
    transport: FakeTransport,
    decode_in: DecodeIn = "processes",
    **options: Any,
) -> Any:
    """Run `ask` with a recognizer and close it, then check that its processes are gone."""

    async def run() -> Any:
        async with AsyncRecognizer(transport=transport, decoding=decode_in, **options) as recognizer:
            return await ask(recognizer)

    before = of_this_process()
    try:
        return asyncio.run(run())
    finally:
        assert wait_until(lambda: of_this_process() == before)


def drop_timings(answer: Recognition | Timeline) -> Recognition | Timeline:
    """Set the timings of an answer to zero, for comparisons."""
    assert answer.decode_s > 0 and answer.wait_s > 0
    return replace(answer, decode_s=0.0, wait_s=0.0)


@dataclass
class Recorder(FakeTransport):
    """Keeps a digest of every tensor."""

    digests: list[str] = field(default_factory=list)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.digests += [sha256(tensor).hexdigest() for tensor in inputs.values()]
        return await super().infer(model, inputs, outputs, priority, parameters)


def make_recorder(preset: Preset) -> Recorder:
    plain = fake_steps(bright, preset)
    return Recorder(plain.models, plain.labels, plain.answer)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signs by the demo signer, alternating four times: 320 frames."""
    folder = tmp_path_factory.mktemp("film")
    for number, gloss in enumerate(("book", "mother")):
        sign = render(gloss, 3_000_010 + number, size=(128, 160), num_frames=40, fps=25.0)
        write_video(sign, folder / f"{number}.mp4")
    (folder / "scenes.txt").write_text("".join(f"file '{number % 2}.mp4'\n" for number in range(8)))
    source = ["-f", "concat", "-i", folder / "scenes.txt"]
    videos.ffmpeg(*source, "-c:v", "libx264", "-r", "25", folder / "film.mp4")
    return folder / "film.mp4"


def ask_everything(sources: Sequence[Any]) -> Callable[[AsyncRecognizer], Coroutine[Any, Any, list[Any]]]:
    """Return a function that makes every kind of request about each video."""

    async def ask(recognizer: AsyncRecognizer) -> list[Any]:
        answers: list[Any] = []
        for source in sources:
            answers.append(drop_timings(await recognizer.recognize(source, name="it")))
            recognition, curves = await recognizer.recognize_with_curves(source, curves=2)
            answers += [drop_timings(recognition), *((curve.gloss, curve.confidences.tolist()) for curve in curves)]
            answers.append(drop_timings(await recognizer.timeline(source, window=32)))
            answers += [
                (step.start_s, step.confidences.tobytes()) async for step in recognizer.steps(source, stride=16)
            ]
        return answers

    return ask


def test_answers_and_tensors_match_threads(film: Path, tmp_path: Path) -> None:
    short = videos.uneven(tmp_path / "uneven.mp4", num_frames=70)
    sources = [film, short, short.read_bytes()]
    (threads, thread_answers), (processes, process_answers) = (
        (transport := make_recorder(BSL1K), run_with_recognizer(ask_everything(sources), transport, mode))
        for mode in DECODE_MODES
    )
    assert thread_answers == process_answers
    assert sorted(threads.digests) == sorted(processes.digests)
    assert len(threads.digests) > 30


def test_answers_to_real_clips_match_threads(shared_folder: Path) -> None:
    sources = sorted((shared_folder / "wlasl" / "videos").iterdir())
    (threads, thread_answers), (processes, process_answers) = (
        (transport := make_recorder(WLASL), run_with_recognizer(ask_everything(sources), transport, mode))
        for mode in DECODE_MODES
    )
    assert thread_answers == process_answers
    assert sorted(threads.digests) == sorted(processes.digests)


def test_sync_recognizer_decodes_files_and_file_objects(film: Path) -> None:
    with Recognizer(transport=fake_steps(bright), decoding="processes") as recognizer, film.open("rb") as file:
        answers = [drop_timings(recognizer.recognize(source, name="it")) for source in (film, file)]
        assert answers[0] == answers[1]
        assert len(list(recognizer.steps(film))) > 20
        next(recognizer.steps(film))  # abandoned after one step
        assert wait_until(lambda: decoders() == [])


@pytest.mark.parametrize("signum", [signal.SIGSEGV, signal.SIGSTOP], ids=lambda signum: signum.name)
@pytest.mark.parametrize("ask", ["recognize_with_curves", "timeline"])
def test_video_that_crashes_or_hangs_its_decoder_fails_alone(film: Path, signum: signal.Signals, ask: str) -> None:
    messages = {
        signal.SIGSEGV: r"^bad cannot be decoded: it ends the decoder \(SIGSEGV\)",
        signal.SIGSTOP: "^bad cannot be decoded: the decoder stood still for 3 s",
    }

    async def recognize_bad_and_good(recognizer: AsyncRecognizer) -> list[Any]:
        def signal_decoders(*_: object) -> None:
            for decoder in decoders():
                decoder.send_signal(signum)

        async def recognize_bad() -> Any:
            if ask == "timeline":
                return await recognizer.timeline(film, name="bad", stride=8, on_progress=signal_decoders)
            return await recognizer.recognize_with_curves(film, name="bad", on_start=signal_decoders)

        with pytest.raises(VideoError, match=messages[signum]):
            await recognize_bad()
        return await asyncio.gather(*(recognizer.recognize(film) for _ in range(4)))

    answers = run_with_recognizer(recognize_bad_and_good, fake_steps(bright), decode_timeout_s=3)
    assert [answer.num_frames for answer in answers] == [answers[0].num_frames] * 4


def test_hang_on_opening_a_video_times_out_too(film: Path) -> None:
    """Here the server that starts the decoders hangs."""

    async def ask(recognizer: AsyncRecognizer) -> None:
        assert (await recognizer.recognize(film)).num_frames > 200
        pool = recognizer._decoder_pool
        assert pool is not None and pool._server is not None
        (worker,) = (worker for worker in workers() if worker.ppid() == pool._server.pid)  # others may be idle
        server = worker.parent()
        server.suspend()
        worker.kill()
        assert wait_until(lambda: worker.status() == psutil.STATUS_ZOMBIE)  # its parent does not notice the end
        with pytest.raises(VideoError, match=r"the decoder stood still for 6 s"):
            await recognizer.recognize(film)
        server.resume()
        assert (await recognizer.recognize(film)).num_frames > 200

    run_with_recognizer(ask, fake(), decode_timeout_s=6)


@pytest.mark.parametrize("decode_in", DECODE_MODES)
def test_canceled_clip_leaves_nothing_behind_and_delays_no_other(film: Path, decode_in: DecodeIn) -> None:
    async def ask(recognizer: AsyncRecognizer) -> Recognition:
        slowest = 0.0
        for delay_s in np.linspace(0, 0.2, 8):
            canceled = asyncio.create_task(recognizer.recognize(film))
            await asyncio.sleep(delay_s)
            canceled.cancel()
            began_s = time.perf_counter()
            await asyncio.gather(canceled, return_exceptions=True)
            slowest = max(slowest, time.perf_counter() - began_s)
        assert slowest < 10  # waiting for the decoder could take 60 s
        assert wait_until(lambda: decoders() == [])
        return await asyncio.wait_for(recognizer.recognize(film), 60)

    assert run_with_recognizer(ask, fake(), decode_in, in_flight=1, decoders=1).num_frames > 200


def test_hung_decoder_does_not_block_the_event_loop_and_ends_with_its_clip(film: Path) -> None:
    async def ask(recognizer: AsyncRecognizer) -> None:
        started = asyncio.Event()
        hung: list[psutil.Process] = []

        def hang(_: ClipPipeline) -> None:
            hung.extend(decoders())
            hung[0].suspend()
            started.set()

        recognition = asyncio.create_task(recognizer.recognize_with_curves(film, on_start=hang))
        await started.wait()
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.01)
            ticks += 1
        recognition.cancel()
        with pytest.raises(asyncio.CancelledError):
            await recognition
        assert ticks == 20
        assert await asyncio.to_thread(wait_until, lambda: not is_decoder(hung[0]))

    run_with_recognizer(ask, fake_steps(bright))


@pytest.mark.parametrize("decode_in", DECODE_MODES)
def test_number_of_decoders_limits_concurrent_decoding(film: Path, decode_in: DecodeIn) -> None:
    async def ask(recognizer: AsyncRecognizer) -> tuple[int, float, float]:
        began_s = time.perf_counter()
        answers = await asyncio.gather(*(recognizer.recognize(film) for _ in range(4)))
        took_s = time.perf_counter() - began_s
        return recognizer.decoders, sum(answer.decode_s for answer in answers), took_s

    num_decoders, decode_s, took_s = run_with_recognizer(ask, fake(), decode_in, decoders=1)
    assert num_decoders == 1
    assert 0 < decode_s <= took_s  # waiting for a decoder does not count


@pytest.mark.parametrize("decode_in", DECODE_MODES)
def test_choice_of_sending_a_file_does_not_depend_on_decoding(tmp_path: Path, decode_in: DecodeIn) -> None:
    small = videos.clip(tmp_path / "small.mp4", num_frames=12)
    raw = ["-c:v", "rawvideo", "-pix_fmt", "bgr24"]
    large = videos.clip(tmp_path / "large.avi", num_frames=10, size="320x240", options=raw)
    server = Server(sign_model())

    async def ask(recognizer: AsyncRecognizer) -> list[str]:
        with pytest.raises(VideoError, match="there is no file"):
            await recognizer.recognize(tmp_path / "nowhere.mp4")
        return [(await recognizer.recognize(path)).gloss for path in (small, large, small.read_bytes())]

    assert run_with_recognizer(ask, server, decode_in, send="auto") == ["mother", "book", "mother"]
    assert len(server.files) == 2


def test_file_of_any_size_becomes_a_timeline(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "huge.mp4"
    content = film.read_bytes()
    with path.open("wb") as file:  # the last box is 6 GiB of free space in a sparse file
        file.write(content + b"\0\0\0\1free" + (6 * 2**30).to_bytes(8, "big"))
        file.truncate(len(content) + 6 * 2**30)
    expected = run_with_recognizer(
        lambda recognizer: recognizer.timeline(film, name="it"), fake_steps(bright), "threads"
    )
    found = run_with_recognizer(lambda recognizer: recognizer.timeline(path, name="it"), fake_steps(bright))
    assert drop_timings(found) == drop_timings(expected)
    with pytest.raises(VideoError, match="larger than 2,147,483,648 bytes"):
        run_with_recognizer(lambda recognizer: recognizer.recognize(path), fake())


@pytest.mark.parametrize("decode_in", DECODE_MODES)
def test_limits_and_warnings_are_the_same(tmp_path: Path, decode_in: DecodeIn) -> None:
    path = videos.clip(tmp_path / "clip.mkv", num_frames=60, options=["-g", "10"])
    damaged = videos.cut(tmp_path / "cut.mkv", path)
    warnings = run_with_recognizer(lambda recognizer: recognizer.recognize(damaged), fake(), decode_in).warnings
    assert len(warnings) == 1 and warnings[0].startswith("cut off: the file ends too early")
    for ask in (AsyncRecognizer.recognize, AsyncRecognizer.timeline):
        with pytest.raises(VideoError, match=r"clip\.mkv has more than 20 frames, the limit"):
            run_with_recognizer(
                lambda r, ask=ask: ask(r, path), fake_steps(bright), decode_in, limits=Limits(max_frames=20)
            )


def test_processes_are_refused_outside_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.sys, "platform", "darwin")
    with pytest.raises(AslTritonError, match="only Linux decodes videos in processes"):
        AsyncRecognizer(transport=fake(), decoding="processes")
    assert decoding.SAFEST == "processes"  # set on import, on Linux


def test_decode_timeout_of_zero_is_refused() -> None:
    with pytest.raises(AslTritonError, match="a decoder cannot be given 0 s"):
        AsyncRecognizer(transport=fake(), decoding="processes", decode_timeout_s=0)


def test_threads_need_no_linux_only_module() -> None:
    code = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'multiprocessing.connection'): sys.modules[name] = None\n"
        "import asl_triton; asl_triton.Recognizer('localhost:1', decoding='threads').close()\n"
        "print(asl_triton.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("asl_triton\n", "")


def test_killed_client_leaves_no_process_behind(film: Path) -> None:
    code = (
        "import sys, threading; from asl_triton import Recognizer\n"
        "from tests.client.served import Stuck, faking\n"
        "recognizer = Recognizer(transport=faking(Stuck), decoding='processes')\n"
        "for _ in range(3): threading.Thread(target=recognizer.recognize, args=sys.argv[1:], daemon=True).start()\n"
        "threading.Event().wait()\n"
    )
    command = [sys.executable, "-c", code, str(film)]
    with subprocess.Popen(command, cwd=ROOT) as client:
        client_process = psutil.Process(client.pid)
        assert wait_until(lambda: len(client_process.children(recursive=True)) >= 2)
        started = client_process.children(recursive=True)
        os.kill(client.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(is_decoder(process) for process in started))
    assert threading.active_count() < 50
