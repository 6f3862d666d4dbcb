"""A model whose videos are decoded in processes of their own: the same answers, and what a bad video costs."""

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

WAYS: tuple[DecodeIn, ...] = ("threads", "processes")
WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]


def asked(
    ask: Callable[[AsyncRecognizer], Coroutine[Any, Any, Any]],
    transport: FakeTransport,
    decode_in: DecodeIn = "processes",
    **options: Any,
) -> Any:
    """What a recognizer is asked, and it is closed: nothing is left of its processes then."""

    async def run() -> Any:
        async with AsyncRecognizer(transport=transport, decoding=decode_in, **options) as recognizer:
            return await ask(recognizer)

    before = of_this_process()
    try:
        return asyncio.run(run())
    finally:
        assert wait_until(lambda: of_this_process() == before)


def of_no_time(answer: Recognition | Timeline) -> Recognition | Timeline:
    """The same answer, but for how long it took."""
    assert answer.decode_s > 0 and answer.wait_s > 0
    return replace(answer, decode_s=0.0, wait_s=0.0)


@dataclass
class Recorder(FakeTransport):
    """Keeps a digest of every tensor."""

    seen: list[str] = field(default_factory=list)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.seen += [sha256(tensor).hexdigest() for tensor in inputs.values()]
        return await super().infer(model, inputs, outputs, priority, parameters)


def recorder(preset: Preset) -> Recorder:
    plain = fake_steps(bright, preset)
    return Recorder(plain.models, plain.labels, plain.answer)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signs of the demo signer, cut together four times: 320 frames."""
    folder = tmp_path_factory.mktemp("film")
    for number, gloss in enumerate(("book", "mother")):
        sign = render(gloss, 3_000_010 + number, size=(128, 160), num_frames=40, fps=25.0)
        write_video(sign, folder / f"{number}.mp4")
    (folder / "scenes.txt").write_text("".join(f"file '{number % 2}.mp4'\n" for number in range(8)))
    listed = ["-f", "concat", "-i", folder / "scenes.txt"]
    videos.ffmpeg(*listed, "-c:v", "libx264", "-r", "25", folder / "film.mp4")
    return folder / "film.mp4"


def answers_of(sources: Sequence[Any]) -> Callable[[AsyncRecognizer], Coroutine[Any, Any, list[Any]]]:
    """All that can be asked about some videos."""

    async def ask(recognizer: AsyncRecognizer) -> list[Any]:
        found: list[Any] = []
        for source in sources:
            found.append(of_no_time(await recognizer.recognize(source, name="it")))
            recognition, curves = await recognizer.recognize_with_curves(source, curves=2)
            found += [of_no_time(recognition), *((curve.gloss, curve.confidences.tolist()) for curve in curves)]
            found.append(of_no_time(await recognizer.timeline(source, window=32)))
            found += [(step.start_s, step.confidences.tobytes()) async for step in recognizer.steps(source, stride=16)]
        return found

    return ask


def test_answers_and_tensors_are_those_of_threads(film: Path, tmp_path: Path) -> None:
    short = videos.uneven(tmp_path / "uneven.mp4", num_frames=70)
    sources = [film, short, short.read_bytes()]
    (threads, here), (processes, there) = (
        (transport := recorder(BSL1K), asked(answers_of(sources), transport, way)) for way in WAYS
    )
    assert here == there
    assert sorted(threads.seen) == sorted(processes.seen)
    assert len(threads.seen) > 30


def test_answers_to_real_clips_are_those_of_threads(shared_folder: Path) -> None:
    sources = sorted((shared_folder / "wlasl" / "videos").iterdir())
    (threads, here), (processes, there) = (
        (transport := recorder(WLASL), asked(answers_of(sources), transport, way)) for way in WAYS
    )
    assert here == there
    assert sorted(threads.seen) == sorted(processes.seen)


def test_file_objects_and_the_sync_face_do_too(film: Path) -> None:
    with Recognizer(transport=fake_steps(bright), decoding="processes") as recognizer, film.open("rb") as file:
        answers = [of_no_time(recognizer.recognize(source, name="it")) for source in (film, file)]
        assert answers[0] == answers[1]
        assert len(list(recognizer.steps(film))) > 20
        next(recognizer.steps(film))  # and left alone
        assert wait_until(lambda: decoders() == [])


@pytest.mark.parametrize("sign", [signal.SIGSEGV, signal.SIGSTOP], ids=lambda sign: sign.name)
@pytest.mark.parametrize("ask", ["recognize_with_curves", "timeline"])
def test_video_that_crashes_or_hangs_its_decoder_costs_itself_alone(film: Path, sign: signal.Signals, ask: str) -> None:
    says = {
        signal.SIGSEGV: r"^bad cannot be decoded: it ends the decoder \(SIGSEGV\)",
        signal.SIGSTOP: "^bad cannot be decoded: the decoder stood still for 3 s",
    }

    async def crowd(recognizer: AsyncRecognizer) -> list[Any]:
        def hit(*_: object) -> None:
            for decoder in decoders():
                decoder.send_signal(sign)

        async def bad() -> Any:
            if ask == "timeline":
                return await recognizer.timeline(film, name="bad", stride=8, on_progress=hit)
            return await recognizer.recognize_with_curves(film, name="bad", on_start=hit)

        with pytest.raises(VideoError, match=says[sign]):
            await bad()
        return await asyncio.gather(*(recognizer.recognize(film) for _ in range(4)))

    answers = asked(crowd, fake_steps(bright), decode_timeout_s=3)
    assert [answer.num_frames for answer in answers] == [answers[0].num_frames] * 4


def test_opening_that_hangs_is_given_up_too(film: Path) -> None:
    """The server of decoders is what hangs here."""

    async def ask(recognizer: AsyncRecognizer) -> None:
        assert (await recognizer.recognize(film)).num_frames > 200
        pool = recognizer._decoder_pool
        assert pool is not None and pool._server is not None
        (worker,) = (worker for worker in workers() if worker.ppid() == pool._server.pid)  # others may be idle
        server = worker.parent()
        server.suspend()
        worker.kill()
        assert wait_until(lambda: worker.status() == psutil.STATUS_ZOMBIE)  # nobody learns that it has ended
        with pytest.raises(VideoError, match=r"the decoder stood still for 6 s"):
            await recognizer.recognize(film)
        server.resume()
        assert (await recognizer.recognize(film)).num_frames > 200

    asked(ask, fake(), decode_timeout_s=6)


@pytest.mark.parametrize("decode_in", WAYS)
def test_clip_that_is_given_up_leaves_nothing_and_holds_up_nobody(film: Path, decode_in: DecodeIn) -> None:
    async def ask(recognizer: AsyncRecognizer) -> Recognition:
        slowest = 0.0
        for delay_s in np.linspace(0, 0.2, 8):
            given_up = asyncio.create_task(recognizer.recognize(film))
            await asyncio.sleep(delay_s)
            given_up.cancel()
            began_s = time.perf_counter()
            await asyncio.gather(given_up, return_exceptions=True)
            slowest = max(slowest, time.perf_counter() - began_s)
        assert slowest < 10  # of a decoder that would be waited for: it has 60 s
        assert wait_until(lambda: decoders() == [])
        return await asyncio.wait_for(recognizer.recognize(film), 60)

    assert asked(ask, fake(), decode_in, in_flight=1, decoders=1).num_frames > 200


def test_hung_decoder_holds_up_no_event_loop_and_is_ended_with_its_clip(film: Path) -> None:
    async def ask(recognizer: AsyncRecognizer) -> None:
        started = asyncio.Event()
        hung: list[psutil.Process] = []

        def hang(_: ClipPipeline) -> None:
            hung.extend(decoders())
            hung[0].suspend()
            started.set()

        asking = asyncio.create_task(recognizer.recognize_with_curves(film, on_start=hang))
        await started.wait()
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.01)
            ticks += 1
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert ticks == 20
        assert await asyncio.to_thread(wait_until, lambda: not is_decoder(hung[0]))

    asked(ask, fake_steps(bright))


@pytest.mark.parametrize("decode_in", WAYS)
def test_as_many_videos_are_decoded_at_once_as_there_are_decoders(film: Path, decode_in: DecodeIn) -> None:
    async def ask(recognizer: AsyncRecognizer) -> tuple[int, float, float]:
        began_s = time.perf_counter()
        answers = await asyncio.gather(*(recognizer.recognize(film) for _ in range(4)))
        took_s = time.perf_counter() - began_s
        return recognizer.decoders, sum(answer.decode_s for answer in answers), took_s

    num_decoders, decode_s, took_s = asked(ask, fake(), decode_in, decoders=1)
    assert num_decoders == 1
    assert 0 < decode_s <= took_s  # waiting for a decoder is no decoding


@pytest.mark.parametrize("decode_in", WAYS)
def test_what_is_sent_as_a_file_does_not_depend_on_it(tmp_path: Path, decode_in: DecodeIn) -> None:
    small = videos.clip(tmp_path / "small.mp4", num_frames=12)
    raw = ["-c:v", "rawvideo", "-pix_fmt", "bgr24"]
    large = videos.clip(tmp_path / "large.avi", num_frames=10, size="320x240", options=raw)
    server = Server(sign_model())

    async def ask(recognizer: AsyncRecognizer) -> list[str]:
        with pytest.raises(VideoError, match="there is no file"):
            await recognizer.recognize(tmp_path / "nowhere.mp4")
        return [(await recognizer.recognize(path)).gloss for path in (small, large, small.read_bytes())]

    assert asked(ask, server, decode_in, send="auto") == ["mother", "book", "mother"]
    assert len(server.files) == 2


def test_file_of_any_size_becomes_a_timeline(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "huge.mp4"
    content = film.read_bytes()
    with path.open("wb") as file:  # the last box is empty space: 6 GiB, of which the disk holds nothing
        file.write(content + b"\0\0\0\1free" + (6 * 2**30).to_bytes(8, "big"))
        file.truncate(len(content) + 6 * 2**30)
    expected = asked(lambda recognizer: recognizer.timeline(film, name="it"), fake_steps(bright), "threads")
    found = asked(lambda recognizer: recognizer.timeline(path, name="it"), fake_steps(bright))
    assert of_no_time(found) == of_no_time(expected)
    with pytest.raises(VideoError, match="larger than 2,147,483,648 bytes"):
        asked(lambda recognizer: recognizer.recognize(path), fake())


@pytest.mark.parametrize("decode_in", WAYS)
def test_limits_and_warnings_are_the_same(tmp_path: Path, decode_in: DecodeIn) -> None:
    path = videos.clip(tmp_path / "clip.mkv", num_frames=60, options=["-g", "10"])
    damaged = videos.cut(tmp_path / "cut.mkv", path)
    told = asked(lambda recognizer: recognizer.recognize(damaged), fake(), decode_in).warnings
    assert len(told) == 1 and told[0].startswith("cut off: the file ends too early")
    for ask in (AsyncRecognizer.recognize, AsyncRecognizer.timeline):
        with pytest.raises(VideoError, match=r"clip\.mkv has more than 20 frames, the limit"):
            asked(lambda r, ask=ask: ask(r, path), fake_steps(bright), decode_in, limits=Limits(max_frames=20))


def test_elsewhere_than_on_linux_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.sys, "platform", "darwin")
    with pytest.raises(AslTritonError, match="only Linux decodes videos in processes"):
        AsyncRecognizer(transport=fake(), decoding="processes")
    assert decoding.SAFEST == "processes"  # as it was when it was imported, here


def test_time_that_is_none_is_refused() -> None:
    with pytest.raises(AslTritonError, match="a decoder cannot be given 0 s"):
        AsyncRecognizer(transport=fake(), decoding="processes", decode_timeout_s=0)


def test_threads_need_nothing_that_only_linux_has() -> None:
    code = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'multiprocessing.connection'): sys.modules[name] = None\n"
        "import asl_triton; asl_triton.Recognizer('localhost:1', decoding='threads').close()\n"
        "print(asl_triton.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("asl_triton\n", "")


def test_nothing_is_left_of_a_client_that_was_killed(film: Path) -> None:
    code = (
        "import sys, threading; from asl_triton import Recognizer\n"
        "from tests.client.served import Stuck, faking\n"
        "recognizer = Recognizer(transport=faking(Stuck), decoding='processes')\n"
        "for _ in range(3): threading.Thread(target=recognizer.recognize, args=sys.argv[1:], daemon=True).start()\n"
        "threading.Event().wait()\n"
    )
    command = [sys.executable, "-c", code, str(film)]
    with subprocess.Popen(command, cwd=ROOT) as client:
        ours = psutil.Process(client.pid)
        assert wait_until(lambda: len(ours.children(recursive=True)) >= 2)
        started = ours.children(recursive=True)
        os.kill(client.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(is_decoder(process) for process in started))
    assert threading.active_count() < 50
