"""`recognize_sign_stream`: the bytes of a long video in, the glosses of each window out as soon as they are known."""

import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from asl_triton.postprocessing.ranking import rank
from asl_triton.presets import PRESETS
from asl_triton.video.preprocessing import crop_frames
from asl_triton.video.reader import open_video
from asl_triton.video.windows import cut_timed_windows
from asl_triton_deploy.local import LocalTriton
from tests.client.videos import PDF, clip
from tests.live.conftest import write_clip
from tests.live.sign_client import Answer, Refusal, ask, ask_stream, build_inputs


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", 140, (60, 80))


def test_each_window_is_answered_in_order_with_its_times(preset_triton: LocalTriton, long: Path) -> None:
    answers = ask_stream(preset_triton.address, long.read_bytes(), model="wlasl")
    assert all(isinstance(answer, Answer) for answer in answers)
    times = [time_s for answer in answers if isinstance(answer, Answer) for time_s in (answer.start_s, answer.end_s)]
    # 140 frames at 25 per second: windows of 64 every 32 frames, and a last one aligned with the end.
    assert times == pytest.approx([frame / 25 for k in (0, 32, 64, 76) for frame in (k, k + 64)])
    assert all(len(answer.glosses) == 10 for answer in answers if isinstance(answer, Answer))


def test_window_logits_average_to_the_answer_for_the_clip(preset_triton: LocalTriton, long: Path) -> None:
    answers = ask_stream(preset_triton.address, long.read_bytes(), model="bsl1k", top_k=20)
    logits = np.zeros((len(answers), 20), np.float32)
    for row, answer in zip(logits, answers, strict=True):
        assert isinstance(answer, Answer)
        row[list(answer.class_ids)] = answer.logits
    whole = ask(preset_triton.address, long.read_bytes(), model="bsl1k", top_k=20)
    assert isinstance(whole, Answer)
    labels = [f"gloss {number}" for number in range(20)]
    pooled = rank(logits.mean(axis=0), labels, PRESETS["bsl1k"], np.arange(20), 20)
    assert [p.gloss for p in pooled] == list(whole.glosses)
    assert whole.logits == pytest.approx([p.logit for p in pooled], abs=1e-4)


def test_short_video_is_one_window_with_the_answer_for_the_clip(strict_triton: LocalTriton, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "short.mp4", 24).read_bytes()
    (window,) = ask_stream(strict_triton.address, video)
    whole = ask(strict_triton.address, video)
    assert isinstance(window, Answer) and isinstance(whole, Answer)
    assert window.glosses == whole.glosses
    assert window.confidences == pytest.approx(whole.confidences, rel=1e-4)
    assert (window.start_s, window.end_s) == pytest.approx((0, 24 / 25))


def test_spans_match_those_of_our_client(preset_triton: LocalTriton, long: Path) -> None:
    with open_video(long) as video:
        windows = cut_timed_windows(crop_frames(video, PRESETS["bsl1k"], 1000), PRESETS["bsl1k"], video.frame_rate)
        times = [float(span.edges_s[place]) for _, span in windows for place in (0, -1)]
    answers = ask_stream(preset_triton.address, long.read_bytes(), model="bsl1k")
    assert [t for a in answers if isinstance(a, Answer) for t in (a.start_s, a.end_s)] == pytest.approx(times)


@pytest.mark.parametrize(
    ("video", "top_k", "model", "status", "message"),
    [
        (b"", None, None, "INVALID_ARGUMENT", "VIDEO is empty (0 bytes)"),
        (PDF, None, None, "INVALID_ARGUMENT", "VIDEO cannot be read as a video: it is something else"),
        (PDF, 0, None, "INVALID_ARGUMENT", "TOP_K is 0: it must be at least 1"),
        (PDF, 5000, None, "INVALID_ARGUMENT", "TOP_K is 5000, but small knows only 7 glosses"),
        (PDF, None, "big", "NOT_FOUND", "this server has no model 'big'"),
    ],
)
def test_invalid_request_ends_with_one_error(
    strict_triton: LocalTriton, video: bytes, top_k: int | None, model: str | None, status: str, message: str
) -> None:
    (refused,) = ask_stream(strict_triton.address, video, top_k=top_k, model=model)
    assert isinstance(refused, Refusal)
    assert refused.status == status
    assert message in refused.message


def test_video_with_undeclared_frames_is_answered_up_to_the_limit(strict_triton: LocalTriton, tmp_path: Path) -> None:
    video = clip(tmp_path / "live.webm", 280, size="16x16", options=["-live", "1", "-deadline", "realtime"])
    *answers, refused = ask_stream(strict_triton.address, video.read_bytes())
    assert all(isinstance(answer, Answer) for answer in answers)
    assert isinstance(refused, Refusal) and "VIDEO has more than 250 frames, the limit" in refused.message


def test_error_without_the_header_does_not_end_the_stream(strict_triton: LocalTriton, tmp_path: Path) -> None:
    good = write_clip(tmp_path / "good.mp4", 12).read_bytes()
    responses: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(strict_triton.address) as client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        for video in (PDF, good):
            client.async_stream_infer("recognize_sign_stream", build_inputs(video))
        errors = [error for _, error in (responses.get(timeout=60), responses.get(timeout=60))]
    assert "VIDEO cannot be read as a video" in str(errors[0])
    assert errors[1] is None


def test_non_streaming_request_is_refused(strict_triton: LocalTriton) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(strict_triton.address) as client,
        pytest.raises(InferenceServerException, match="decoupled"),
    ):
        client.infer("recognize_sign_stream", build_inputs(b""))
