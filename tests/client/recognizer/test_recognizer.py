"""Recognizing clips: windows, pooling, concurrency, and what ends a clip early."""

import asyncio
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from asl_triton.decoding.factory import SAFEST, DecodeIn
from asl_triton.errors import AslTritonError, ContractError, LabelsError, ServerError, VideoError
from asl_triton.models.card import ModelCard
from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.results import Recognition, SignerBox
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.excerpt import Excerpt
from asl_triton.video.preprocessing import crop_frames, normalize
from asl_triton.video.reader import Limits, open_video
from tests.client import videos
from tests.client.served import GLOSSES, Gauge, LastFirst, Stuck, answering, described, fake, faking, in_order

WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]
DECODE_IN: list[DecodeIn] = sorted({"threads", SAFEST})


def recognize(transport: FakeTransport, video: object, **options: object) -> Recognition:
    async def ask() -> Recognition:
        async with AsyncRecognizer(transport=transport) as recognizer:
            return await recognizer.recognize(video, **options)  # type: ignore[arg-type]

    return asyncio.run(ask())


def list_input_shapes(transport: FakeTransport) -> list[tuple[int, ...]]:
    """Return the shapes of the inputs in the order of the requests."""
    return [inputs["FRAMES__0"] for _model, inputs in transport.calls]


def measure_brightness(tensor: Array) -> Sequence[float]:
    """Return the brightness of the first frame as the logit of the first class. All others are far below."""
    return [float(tensor[0].mean()), -1000, -1000, -1000, -1000, -1000]


def test_whole_clip_is_one_request(tmp_path: Path) -> None:
    transport = fake()
    path = videos.clip(tmp_path / "clip.mp4", num_frames=30)
    recognition = recognize(transport, path, top_k=3)
    assert list_input_shapes(transport) == [(1, 30, 224, 224, 3)]
    assert [p.gloss for p in recognition.predictions] == list(GLOSSES[:3])
    assert (recognition.video, recognition.model, recognition.unsure) == (str(path), "signs", None)
    assert (recognition.num_frames, recognition.num_windows, recognition.warnings) == (30, 1, ())
    assert recognition.duration_s == pytest.approx(30 / 25)
    assert recognition.decode_s > 0 and recognition.wait_s > 0


@pytest.mark.parametrize("num_frames", [1, 8])
def test_short_clip_is_padded_to_what_the_network_needs(tmp_path: Path, num_frames: int) -> None:
    transport = fake()
    path = videos.clip(tmp_path / "clip.mp4", num_frames=num_frames)
    assert recognize(transport, path).num_frames == num_frames
    assert list_input_shapes(transport) == [(1, 9, 224, 224, 3)]


@pytest.mark.parametrize(("preset", "num_frames", "starts", "pooled"), [
    (BSL1K, 40, [0], 0),
    (BSL1K, 128, [0, 32, 64], 32),  # mean
    (WLASL, 352, range(0, 289, 32), 144),  # max; here the level rises by 1 every two frames
], ids=["short", "mean", "max"])  # fmt: skip
def test_windows_are_sent_in_order_and_pooled_by_the_preset(
    tmp_path: Path, preset: object, num_frames: int, starts: Sequence[int], pooled: float
) -> None:
    scale = 1 if num_frames < 256 else 2
    path = videos.levels(tmp_path / "clip.mkv", [n // scale for n in range(num_frames)])
    seen: list[float] = []

    def answer(tensor: Array) -> Sequence[float]:
        seen.append(float(tensor[0].mean()))
        return measure_brightness(tensor)

    recognition = recognize(transport := fake(preset, answer), path)  # type: ignore[arg-type]
    assert set(list_input_shapes(transport)) == {(1, 64, 224, 224, 3)}
    assert seen[1:] == pytest.approx([start // scale for start in starts], abs=1)  # the first request reads the labels
    assert recognition.num_windows == len(starts)
    assert recognition.predictions[0].logit == pytest.approx(pooled, abs=1)


def test_order_of_the_answers_does_not_matter(tmp_path: Path) -> None:
    path = videos.levels(tmp_path / "clip.mkv", [n // 2 for n in range(64 + 3 * 32)])
    plain = recognize(fake(BSL1K, measure_brightness), path)
    reversed_order = recognize(faking(LastFirst, BSL1K, measure_brightness), path)
    assert plain.num_windows == 4
    assert reversed_order.predictions == plain.predictions


def test_model_with_fp32_input_gets_normalized_frames(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "clip.mp4", num_frames=12)
    given: list[Array] = []

    def answer(tensor: Array) -> Sequence[float]:
        given.append(tensor)
        return in_order(tensor)

    recognize(fake(WLASL, answer, datatype="FP32"), path)
    with open_video(path) as video:
        frames = np.stack([crop.image for crop in crop_frames(video, WLASL, 100)])
    assert given[1].dtype == np.float32
    assert np.array_equal(given[1], normalize(frames, WLASL))


def test_window_that_fails_ends_the_clip(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(tensor: Array) -> Sequence[float]:
        asked.append(1)
        if len(asked) == 4:
            raise ServerError("the third window failed")
        return in_order(tensor)

    path = videos.clip(tmp_path / "clip.mp4", num_frames=3000, size="32x32")
    with pytest.raises(ServerError, match="the third window failed"):
        recognize(fake(BSL1K, answer), path)
    assert len(asked) < 20  # of 93


@pytest.mark.parametrize(("logits", "says"), [
    ([float("nan")] * 6, "logits that are not finite.*--precision fp32"),
    ([0, 1, 2, 3, 4, float("inf")], "logits that are not finite"),
    ([0.0] * 7, "7 logits for 6 glosses: it was changed meanwhile"),
], ids=["NaN", "infinite", "too many"])  # fmt: skip
def test_invalid_answer_is_rejected(tmp_path: Path, logits: list[float], says: str) -> None:
    answers = iter([in_order(np.zeros(1)), logits])
    with pytest.raises(ContractError, match=says):
        recognize(fake(WLASL, lambda tensor: next(answers)), videos.clip(tmp_path / "clip.mp4"))


def test_model_supplies_its_threshold_and_warning(tmp_path: Path) -> None:
    card = ModelCard(caveat="an example, not a network", min_confidence=0.6)
    transport = FakeTransport({"signs": described(**card.to_parameters())}, GLOSSES, answering(in_order))
    path = videos.clip(tmp_path / "clip.mp4")
    found = recognize(transport, path)
    assert (found.confidence, found.unsure, found.warnings) == (0.5, True, (card.caveat,))
    assert recognize(transport, path, min_confidence=0.5).unsure is False
    assert recognize(transport, path, min_confidence=0.0).unsure is False


def test_vocabulary_and_confidence_narrow_the_answer(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "clip.mp4")
    recognition = recognize(fake(), path, vocabulary=["home", "help"], min_confidence=0.5, name="mine")
    assert [p.gloss for p in recognition.predictions] == ["help", "home"]
    assert recognition.unsure and recognition.video == "mine"
    assert not recognize(fake(), path, min_confidence=0.5).unsure


@pytest.mark.parametrize(("options", "error"), [
    ({"top_k": 0}, AslTritonError), ({"min_confidence": 2}, AslTritonError), ({"vocabulary": ["cat"]}, LabelsError),
], ids=str)  # fmt: skip
def test_invalid_options_are_rejected_before_the_clip_is_opened(
    options: dict[str, object], error: type[AslTritonError]
) -> None:
    with pytest.raises(error, match=str(next(iter(options.values()))).strip("[]'")):
        recognize(fake(), "no such clip.mp4", **options)


def test_unreadable_clip_is_reported(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no file"):
        recognize(fake(), tmp_path / "nowhere.mp4")


def test_answer_includes_the_warnings_of_the_video(tmp_path: Path) -> None:
    source = videos.clip(tmp_path / "whole.mkv", num_frames=60, options=["-g", "10"])
    recognition = recognize(fake(), videos.cut(tmp_path / "cut.mkv", source))
    assert recognition.warnings == (
        f"cut off: the file ends too early, after {recognition.num_frames} readable frames",
    )


@pytest.mark.parametrize("decoding", DECODE_IN)
@pytest.mark.parametrize(("times_s", "shown"), [
    ([0.0, 0.04, 0.5], [0, 10, 120]), ([0.5, -1, 0.079, 99, 0.5, 0.04], [120, 0, 10, 240, 120, 10]), ([], []),
    ([99.0], [240]), ([0.959, 0.96, 0.961], [230, 240, 240]),
], ids=str)  # fmt: skip
def test_crops_are_in_the_order_of_the_requested_times(
    tmp_path: Path, decoding: DecodeIn, times_s: list[float], shown: list[int]
) -> None:
    path = videos.levels(tmp_path / "clip.mkv", range(0, 250, 10))
    with Recognizer(transport=fake(), decoding=decoding) as recognizer:
        crops = recognizer.crops(path, times_s)
    assert [int(crop.image[100, 100, 0]) for crop in crops] == shown
    assert [crop.time_s for crop in crops] == pytest.approx([level / 250 for level in shown])
    assert {crop.image.shape for crop in crops} <= {(224, 224, 3)}


def test_crops_of_a_long_clip_come_from_its_windows(tmp_path: Path) -> None:
    path = videos.levels(tmp_path / "clip.mkv", [n // 2 for n in range(400)])
    with Recognizer(transport=fake(BSL1K)) as recognizer:
        crops = recognizer.crops(path, [15.0, 1.0, 8.02])
    assert [int(crop.image[100, 100, 0]) for crop in crops] == pytest.approx([187, 12, 100], abs=1)


def test_crops_equal_those_sent_to_the_server(right_is_bright: Path) -> None:
    with Recognizer(transport=fake(PERSON)) as recognizer:
        (cut,) = recognizer.crops(right_is_bright, [0.0], signer=BOX)
        (whole,) = recognizer.crops(right_is_bright, [0.0], find_signer=False)
    assert cut.image.min() > 150 and whole.image.min() < 50


def test_crops_of_a_missing_video_are_reported(tmp_path: Path) -> None:
    with Recognizer(transport=fake()) as recognizer, pytest.raises(VideoError, match="there is no file"):
        recognizer.crops(tmp_path / "nowhere.mp4", [0.0])


def test_limits_are_enforced(tmp_path: Path) -> None:
    async def ask() -> None:
        async with AsyncRecognizer(transport=fake(), limits=Limits(max_frames=10)) as recognizer:
            await recognizer.recognize(videos.clip(tmp_path / "clip.mp4", num_frames=11))

    with pytest.raises(VideoError, match="more than 10 frames"):
        asyncio.run(ask())


def test_contract_is_read_once_for_concurrent_clips(tmp_path: Path) -> None:
    described: list[str] = []

    class Counting(FakeTransport):
        async def describe(self, model: str) -> object:  # type: ignore[override]
            described.append(model)
            await asyncio.sleep(0)
            return await super().describe(model)

    path = videos.clip(tmp_path / "clip.mp4", num_frames=9)

    async def ask() -> list[Recognition]:
        async with AsyncRecognizer(transport=faking(Counting), model="signs") as recognizer:
            return await asyncio.gather(*(recognizer.recognize(path) for _ in range(10)))

    assert len(asyncio.run(ask())) == 10
    assert described == ["signs"]


@pytest.mark.parametrize(
    ("num_frames", "max_in_flight"), [(9, 3), (200, 1), (400, 4)], ids=["short", "long", "windowed"]
)
def test_memory_limits_the_number_of_concurrent_clips(tmp_path: Path, num_frames: int, max_in_flight: int) -> None:
    # Three requests may hold 144 frames: three short clips, or a long one with up to four windows in flight.
    path = videos.clip(tmp_path / "clip.mp4", num_frames=num_frames, size="32x32")
    transport = faking(Gauge)

    async def ask() -> None:
        async with AsyncRecognizer(transport=transport, in_flight=3) as recognizer:
            await asyncio.gather(*(recognizer.recognize(path) for _ in range(8)))

    asyncio.run(ask())
    assert isinstance(transport, Gauge) and 1 <= transport.most_at_once <= max_in_flight


def test_canceled_clip_cancels_its_requests_and_its_decoding(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "clip.mp4", num_frames=3000, size="32x32")
    given_up = []

    async def ask() -> None:
        come = asyncio.Event()
        transport = faking(Stuck, BSL1K)
        assert isinstance(transport, Stuck)
        transport.come, transport.given_up = come.set, lambda: given_up.append(1)
        async with AsyncRecognizer(transport=transport) as recognizer:
            asking = asyncio.create_task(recognizer.recognize(path))
            await come.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(ask())
    assert 1 <= len(given_up) <= 4
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            thread.join()


def test_sync_client_gives_the_same_answer(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "clip.mp4")
    with Recognizer(transport=fake()) as recognizer, path.open("rb") as file:
        assert recognizer.model().labels == GLOSSES
        answers = [recognizer.recognize(source) for source in (path, path.read_bytes(), file)]
    assert {answer.predictions for answer in answers} == {recognize(fake(), path).predictions}


def test_sync_client_works_from_several_threads(tmp_path: Path) -> None:
    paths = [videos.levels(tmp_path / f"{n}.mkv", [20 * n] * 9) for n in range(8)]
    with Recognizer(transport=fake(WLASL, measure_brightness)) as recognizer, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(recognizer.recognize, paths))
    assert [answer.predictions[0].logit for answer in answers] == pytest.approx([20 * n for n in range(8)], abs=1)


def test_sync_client_works_inside_an_event_loop(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "clip.mp4")

    async def notebook() -> Recognition:
        with Recognizer(transport=fake()) as recognizer:
            return recognizer.recognize(path)

    assert asyncio.run(notebook()).gloss == "book"


def test_sync_client_raises_the_original_error(tmp_path: Path) -> None:
    with Recognizer(transport=fake()) as recognizer, pytest.raises(VideoError, match="there is no file"):
        recognizer.recognize(tmp_path / "nowhere.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to one thread")
def test_ctrl_c_cancels_a_sync_call_and_its_request(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "clip.mp4")
    given_up = threading.Event()
    transport = faking(Stuck)
    assert isinstance(transport, Stuck)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    transport.come = lambda: signal.pthread_kill(main_thread, signal.SIGINT)
    transport.given_up = given_up.set
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Recognizer(transport=transport) as recognizer:
            with pytest.raises(KeyboardInterrupt):
                recognizer.recognize(path)
            assert given_up.wait(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)


PERSON, CITIZEN = PRESETS["bsl1k-person"], PRESETS["asl-citizen"]
BOX = SignerBox(0.5, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def right_is_bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip whose right half is bright and whose left half is dark."""
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[:, 80:] = 200
    return videos.written_by_opencv(tmp_path_factory.mktemp("halves") / "clip.mp4", [frame] * 12)


@pytest.mark.parametrize("decoding", DECODE_IN)
@pytest.mark.parametrize(("signer", "logit"), [(BOX, 200), (SignerBox(0, 0, 0.5, 1), 0), (None, 100)])
def test_crops_are_cut_from_the_signers_box(
    right_is_bright: Path, decoding: DecodeIn, signer: SignerBox | None, logit: float
) -> None:
    async def ask() -> Recognition:
        transport = fake(PERSON, lambda tensor: [float(tensor.mean()), *[-1000.0] * 5])
        async with AsyncRecognizer(transport=transport, signer=signer, decoding=decoding) as recognizer:
            return await recognizer.recognize(right_is_bright)

    recognition = asyncio.run(ask())
    assert recognition.predictions[0].logit == pytest.approx(logit, abs=5)
    assert recognition.signer == signer
    assert ("no signer was found in the picture" in " ".join(recognition.warnings)) == (signer is None)


def test_box_of_a_call_overrides_that_of_the_recognizer(right_is_bright: Path) -> None:
    async def ask() -> Recognition:
        async with AsyncRecognizer(transport=fake(PERSON), signer=BOX) as recognizer:
            return await recognizer.recognize(right_is_bright, signer=SignerBox(0, 0, 0.5, 1))

    assert asyncio.run(ask()).signer == SignerBox(0, 0, 0.5, 1)


def test_model_of_whole_frames_warns_about_an_unused_box(right_is_bright: Path) -> None:
    recognition = recognize(fake(), right_is_bright, signer=BOX)
    assert recognition.signer is None
    assert "the signer's box was not used: preset 'wlasl' takes whole frames" in recognition.warnings[0]


@pytest.mark.parametrize("decoding", DECODE_IN)
def test_excerpt_is_recognized_like_a_clip(tmp_path: Path, decoding: DecodeIn) -> None:
    path = videos.levels(tmp_path / "film.mkv", list(range(100)))
    seen: list[tuple[int, float]] = []

    def answer(tensor: Array) -> Sequence[float]:
        seen.append((len(tensor), float(tensor[0].mean())))
        return in_order(tensor)

    async def ask(excerpt: Excerpt) -> Recognition:
        async with AsyncRecognizer(transport=fake(WLASL, answer), decoding=decoding) as recognizer:
            return await recognizer.recognize(path, excerpt=excerpt)

    asyncio.run(ask(Excerpt(20, 49)))
    asyncio.run(ask(Excerpt(start_s=0.8, end_s=2.0)))
    assert [length for length, _ in seen[1::2]] == [30, 30]
    assert [level for _, level in seen[1::2]] == pytest.approx([20, 20], abs=1)
    with pytest.raises(VideoError, match="has no frame from frame 100 to the end"):
        asyncio.run(ask(Excerpt(100)))


def test_long_clip_of_centered_frames_warns_about_skipped_frames(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "long.mp4", num_frames=600, size="64x64")
    transport = fake(CITIZEN)
    recognition = recognize(transport, path)
    assert list_input_shapes(transport) == [(1, 64, 224, 224, 3)]
    assert recognition.warnings == (
        "only frames 160 to 351 of 600 were used, because preset 'asl-citizen' is for short clips: cut the video to "
        "one sign",
    )
    assert recognize(fake(CITIZEN), videos.clip(tmp_path / "short.mp4", num_frames=204, size="64x64")).warnings == ()
