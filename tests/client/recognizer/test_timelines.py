"""Steps, timelines and curves of long videos, which are decoded, recognized and stitched as a stream."""

import asyncio
import gc
import tracemalloc
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from asl_triton.errors import AslTritonError, ContractError, LabelsError, ServerError, VideoError
from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.presets import PRESETS, Preset
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.results import Segment, SignerBox, Step, Timeline
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.reader import Limits
from tests.client import videos
from tests.client.served import Gauge, bright, fake_steps

WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]
# The film of 500 frames is bright from frame 100 to 139 and from 300 to 359: two signs.
SIGNED = ((100, 140), (300, 360))
DARK, LIGHT = 60, 190


def build_levels(num_frames: int = 500) -> list[int]:
    """Return the gray levels of a video of two signs that fade in and out, so that nothing looks like a cut."""
    ramp = np.interp(np.arange(num_frames), *zip(*RAMPS, strict=True))
    return [int(level) for level in ramp]


RAMPS = [(0, DARK)] + [
    corner
    for start, end in SIGNED
    for corner in ((start - 16, DARK), (start + 16, LIGHT), (end - 16, LIGHT), (end + 16, DARK))
]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.levels(tmp_path_factory.mktemp("film") / "film.mkv", build_levels())


def collect_steps(transport: FakeTransport, video: object, **options: object) -> list[Step]:
    async def collect() -> list[Step]:
        async with AsyncRecognizer(transport=transport) as recognizer:
            return [step async for step in recognizer.steps(video, **options)]  # type: ignore[arg-type]

    return asyncio.run(collect())


def find_timeline(transport: FakeTransport, video: object, **options: Any) -> Timeline:
    async def ask() -> Timeline:
        async with AsyncRecognizer(transport=transport) as recognizer:
            return await recognizer.timeline(video, **options)  # type: ignore[arg-type]

    return asyncio.run(ask())


@pytest.mark.parametrize("preset", [WLASL, BSL1K, PRESETS["asl-citizen"]], ids=lambda preset: preset.name)
def test_video_is_sent_in_windows_and_its_steps_are_in_order(film: Path, preset: Preset) -> None:
    transport = fake_steps(bright, preset)
    steps = collect_steps(transport, film)
    assert [inputs["FRAMES__0"] for _, inputs in transport.calls] == [(1, 64, 224, 224, 3)] * 15
    starts = [step.start_s * 25 for step in steps]
    assert len(starts) == 62 and starts[:55] == pytest.approx([4 + 8 * n for n in range(55)])
    assert all(4 <= after - before <= 12 for before, after in pairwise(starts))  # the last window is flush with the end
    if preset.score == "softmax":  # always reports some gloss
        return
    book = [float(step.confidences[0]) for step in steps]
    assert min(book[13:17] + book[38:44]) > 0.85 and max(book[:10] + book[20:34] + book[50:]) < 0.2


@pytest.mark.parametrize(("window", "stride", "windows"), [(64, 64, 8), (32, 8, 60), (100, 50, 9), (9, 9, 56)])
def test_windows_have_the_requested_length_and_stride(film: Path, window: int, stride: int, windows: int) -> None:
    transport = fake_steps(bright)
    steps = collect_steps(transport, film, window=window, stride=stride)
    assert {inputs["FRAMES__0"][1] for _, inputs in transport.calls} == {window}
    assert len(transport.calls) == windows
    assert all(a.middle_s < b.middle_s for a, b in pairwise(steps))


@pytest.mark.parametrize("num_frames", [1, 9, 20, 64, 65])
def test_video_shorter_than_a_window_is_one_request(tmp_path: Path, num_frames: int) -> None:
    path = videos.levels(tmp_path / "clip.mkv", [LIGHT] * num_frames)
    transport = fake_steps(bright)
    steps = collect_steps(transport, path)
    assert len(transport.calls) == (1 if num_frames <= 64 else 2)
    assert 0 <= steps[0].start_s < steps[-1].end_s <= num_frames / 25 + 1e-9
    assert all(step.confidences[0] > 0.9 for step in steps)


def test_timeline_reports_each_sign_and_its_times(film: Path) -> None:
    reported: list[Segment] = []
    shares: list[float] = []
    found = find_timeline(fake_steps(bright), film, on_segment=reported.append, on_progress=shares.append)
    assert [segment.gloss for segment in found.segments] == ["book", "book"]
    for segment, (start, end) in zip(found.segments, SIGNED, strict=True):
        assert segment.start_s == pytest.approx(start / 25, abs=0.3) and segment.end_s == pytest.approx(
            end / 25, abs=0.3
        )
        assert segment.start_s < segment.peak_s < segment.end_s and 0.9 < segment.confidence < 1
    assert tuple(reported) == found.segments
    assert shares == sorted(shares) and 0 < shares[0] < 0.3 and shares[-1] == 1
    assert (found.video, found.model, found.num_frames, found.num_windows) == (str(film), "signs", 500, 15)
    assert found.duration_s == pytest.approx(20) and found.warnings == ()
    assert found.decode_s > 0 and found.wait_s > 0


def test_times_follow_a_variable_frame_rate(tmp_path: Path) -> None:
    path = tmp_path / "uneven.mkv"
    times_s = np.cumsum([0] + [0.04 if n % 100 < 50 else 0.1 for n in range(499)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for level, time_s in zip(build_levels(), times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64), level, np.uint8), format="gray")
            frame.pts, frame.time_base = round(time_s * 1000), stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = find_timeline(fake_steps(bright), path)
    assert [(s.start_s, s.end_s) for s in found.segments] == [
        (pytest.approx(times_s[start], abs=0.8), pytest.approx(times_s[end], abs=0.8)) for start, end in SIGNED
    ]
    assert times_s[300] - 300 / 25 > 7  # the error if frames were counted; in the slow parts a step takes 0.8 s


def test_windows_do_not_cross_cuts(tmp_path: Path) -> None:
    path = videos.levels(tmp_path / "cut.mkv", [DARK] * 50 + [LIGHT] * 40 + [DARK] * 50)
    transport = fake_steps(bright)
    (segment,) = find_timeline(transport, path).segments
    assert [inputs["FRAMES__0"][1] for _, inputs in transport.calls] == [50, 40, 50]
    assert (segment.start_s, segment.end_s) == (pytest.approx(2.0, abs=0.17), pytest.approx(3.6, abs=0.17))


def test_vocabulary_and_rules_select_the_segments(film: Path) -> None:
    assert find_timeline(fake_steps(bright), film, vocabulary=["drink"]).segments == ()
    assert len(find_timeline(fake_steps(bright), film, vocabulary=["book", "drink"]).segments) == 2
    assert find_timeline(fake_steps(bright), film, rules=Segmentation(0.999)).segments == ()
    assert len(find_timeline(fake_steps(bright), film, rules=Segmentation(min_length_s=2.5)).segments) == 1


def test_video_in_memory_and_sync_client_give_the_same_answer(film: Path) -> None:
    with Recognizer(transport=fake_steps(bright)) as recognizer:
        segments = recognizer.timeline(film).segments
        assert recognizer.timeline(film.read_bytes(), name="mine").segments == segments
        steps = list(recognizer.steps(film))
    assert len(segments) == 2 and len(steps) == 62


@pytest.mark.parametrize(("options", "error", "says"), [
    ({"window": 8}, AslTritonError, "--window 8 is out of range"),
    ({"stride": 0}, AslTritonError, "--stride 0 is out of range"),
    ({"vocabulary": ["cat"]}, LabelsError, "does not know 1 of the 1 glosses in the vocabulary: cat"),
], ids=str)  # fmt: skip
def test_invalid_options_are_rejected_before_the_video_is_opened(
    options: dict[str, object], error: type[AslTritonError], says: str
) -> None:
    with pytest.raises(error, match=says):
        find_timeline(fake_steps(bright), "no such film.mp4", **options)


def test_unreadable_video_is_reported(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no file"):
        find_timeline(fake_steps(bright), tmp_path / "nowhere.mp4")


def test_film_may_be_longer_than_a_clip_but_not_exceed_given_limits(tmp_path: Path) -> None:
    path = videos.levels(tmp_path / "film.mkv", [DARK] * 30)
    assert AsyncRecognizer(transport=fake_steps(bright)).film_limits.max_frames == 2_000_000
    limited = Recognizer(transport=fake_steps(bright), limits=Limits(max_frames=20))
    with limited as recognizer, pytest.raises(VideoError, match="more than 20 frames"):
        recognizer.timeline(path)


@pytest.mark.parametrize(("steps", "says"), [
    (lambda logits: logits[:-1], "answered with 6 x 6 logits for 6 glosses"),
    (lambda logits: logits[:, :5], "answered with 7 x 5 logits for 6 glosses"),
    (lambda logits: logits * np.nan, "logits that are not finite"),
], ids=["a step too few", "a gloss too few", "NaN"])  # fmt: skip
def test_invalid_answer_is_rejected(film: Path, steps: Any, says: str) -> None:
    transport = fake_steps(bright)
    sound = transport.answer
    transport.answer = lambda model, inputs: (
        sound(model, inputs) | {"STEP_LOGITS__1": steps(sound(model, inputs)["STEP_LOGITS__1"][0])[None]}
    )
    with pytest.raises(ContractError, match=says):
        find_timeline(transport, film)


def test_window_that_fails_ends_the_video(film: Path) -> None:
    asked: list[int] = []

    def answer(frames: Array) -> Array:
        asked.append(1)
        if len(asked) == 5:
            raise ServerError("the fourth window failed")
        return bright(frames)

    with pytest.raises(ServerError, match="the fourth window failed"):
        find_timeline(fake_steps(answer), film)
    assert len(asked) < 12  # of 16


def test_leaving_early_cancels_requests_in_flight(film: Path) -> None:
    transport = fake_steps(bright)

    async def leave() -> None:
        async with AsyncRecognizer(transport=transport, in_flight=1) as recognizer:
            async with aclosing(recognizer.steps(film, stride=8)) as steps:
                async for _ in steps:
                    break
            assert len(transport.calls) < 10
            await asyncio.wait_for(recognizer.timeline(film), timeout=60)  # a request slot is free again

    asyncio.run(leave())
    with Recognizer(transport=fake_steps(bright), in_flight=1) as recognizer:
        next(recognizer.steps(film))
        gc.collect()
        assert len(recognizer.timeline(film).segments) == 2


class Slow(Gauge):
    """Answers so slowly that the next windows are ready first."""

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        self.at_once += 1
        await asyncio.sleep(0.2)
        self.at_once -= 1
        return await super().infer(model, inputs, outputs, priority)


def test_few_windows_are_in_flight(film: Path) -> None:
    plain = fake_steps(bright)
    transport = Slow(plain.models, plain.labels, plain.answer)
    assert len(find_timeline(transport, film).segments) == 2
    assert 2 <= transport.most_at_once <= 4


class DiscardingList(list):  # type: ignore[type-arg]
    """A list that stays empty."""

    def append(self, _item: object) -> None:
        return None


def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path: Path) -> None:
    def measure_peak_memory(num_frames: int) -> int:
        path = videos.clip(tmp_path / f"{num_frames}.mp4", num_frames=num_frames, size="32x32")
        transport = fake_steps(bright)
        transport.calls = DiscardingList()
        tracemalloc.start()
        found = find_timeline(transport, path, stride=64)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.num_frames == num_frames
        return peak_bytes

    short, long = measure_peak_memory(300), measure_peak_memory(3000)
    assert long < 1.1 * short + 2**20, (short, long)


def test_curves_and_answer_come_from_the_same_requests(film: Path) -> None:
    transport = fake_steps(bright)
    with Recognizer(transport=transport) as recognizer:
        recognition, curves = recognizer.recognize_with_curves(film, top_k=2, curves=3)
        asked = len(transport.calls)
        assert recognition.num_windows == asked == 15
        plain = recognizer.recognize(film, top_k=2)
    assert plain.predictions == recognition.predictions
    assert [curve.gloss for curve in curves] == ["book", "drink", "hello"]  # ties are in class order
    times_s, book = curves[0].times_s, curves[0].confidences
    assert len(times_s) == len(book) == 62 and np.all(np.diff(times_s) > 0)
    assert book.max() == pytest.approx(recognition.confidence, abs=0.02)
    assert times_s[np.argmax(book)] == pytest.approx(330 / 25, abs=1.2)


def test_clip_of_one_request_has_curves_too(tmp_path: Path) -> None:
    path = videos.levels(tmp_path / "clip.mkv", [LIGHT] * 30)
    with Recognizer(transport=fake_steps(bright)) as recognizer:
        recognition, (curve,) = recognizer.recognize_with_curves(path, vocabulary=["drink"], curves=4)
        assert recognition.num_windows == 1 and [p.gloss for p in recognition.predictions] == ["drink"]
        assert (curve.gloss, len(curve.times_s)) == ("drink", 3)
        assert recognizer.recognize_with_curves(path, curves=0)[1] == ()


def test_model_framed_on_the_signer_warns_if_no_signer_is_found(film: Path) -> None:
    person, box = PRESETS["bsl1k-person"], SignerBox(0.1, 0.0, 0.9, 1.0)
    assert find_timeline(fake_steps(bright, person), film, signer=box).warnings == ()
    (warning,) = find_timeline(fake_steps(bright, person), film).warnings
    assert "no signer was found in the picture" in warning
