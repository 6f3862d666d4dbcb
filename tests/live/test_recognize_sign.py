"""`recognize_sign`: video bytes in, glosses out, for a caller without our code."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from asl_triton.presets import PRESETS
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.results import SignerBox
from asl_triton.transport.base import Statistics
from asl_triton.transport.factory import make_transport
from asl_triton_demo.signer import render_demo
from asl_triton_deploy.local import LocalTriton
from tests.client.videos import (
    PDF,
    audio_only,
    clip,
    cut,
    faststart,
    ffmpeg,
    huge,
    still,
    with_audio,
    written_by_opencv,
)
from tests.command_line import asl_triton
from tests.live.conftest import write_clip
from tests.live.sign_client import Answer, Refusal, ask, ask_with, build_inputs, build_tensor
from tests.live.sign_processes import find_decoders, find_stubs, wait_until
from tests.networks import GLOSSES

PRESET_NAMES = (*PRESETS, "classic")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two clips of the demo signer, one clip of three frames, and one too long for a single request."""
    folder = tmp_path_factory.mktemp("signed")
    return [
        *render_demo(folder, ("book", "mother"), (3_000_002,)),
        write_clip(folder / "short.mp4", 3),
        write_clip(folder / "long.mp4", 310, (60, 80)),
    ]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_clip(tmp_path_factory.mktemp("good") / "good.mp4", 24).read_bytes()


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_answers_match_those_of_our_client(preset_triton: LocalTriton, signed: list[Path], preset: str) -> None:
    with Recognizer(preset_triton.address, model=preset) as recognizer:
        for path in signed if preset == "wlasl" else signed[:3]:
            ours = recognizer.recognize(path, top_k=10)
            theirs = ask(preset_triton.address, path.read_bytes(), model=preset)
            assert isinstance(theirs, Answer), theirs
            assert theirs.glosses == tuple(p.gloss for p in ours.predictions)
            assert theirs.class_ids == tuple(p.class_id for p in ours.predictions)
            assert theirs.confidences == pytest.approx([p.confidence for p in ours.predictions], rel=1e-4, abs=1e-6)
            assert theirs.logits == pytest.approx([p.logit for p in ours.predictions], abs=1e-4)
            details = theirs.details
            assert (details["model"], details["num_frames"], details["num_windows"]) == (
                preset,
                ours.num_frames,
                ours.num_windows,
            )
            assert details["duration_s"] == pytest.approx(ours.duration_s)
            assert details["warnings"] == list(ours.warnings)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a clip whose left and right halves differ."""
    random = np.random.default_rng(0)
    left, right = (random.integers(0, 256, (120, 80, 3), np.uint8) for _ in range(2))
    frame = np.concatenate([left // 3, 255 - right // 3], axis=1)
    return written_by_opencv(tmp_path_factory.mktemp("halves") / "clip.mp4", [frame] * 20)


def test_signer_box_gives_the_same_answer_as_our_client(preset_triton: LocalTriton, halves: Path) -> None:
    address, box = preset_triton.address, SignerBox(0.5, 0.0, 1.0, 1.0)
    tensors = [
        *build_inputs(halves.read_bytes()),
        build_tensor("SIGNER_BOX", np.array([0.5, 0, 1, 1], np.float32), "FP32"),
    ]
    with tritonclient.grpc.InferenceServerClient(address) as client:
        theirs = ask_with(client, tensors, model="bsl1k-person")
    assert isinstance(theirs, Answer), theirs
    with Recognizer(address, model="bsl1k-person") as recognizer:
        ours, whole = recognizer.recognize(halves, signer=box), recognizer.recognize(halves)
    assert theirs.logits == pytest.approx([p.logit for p in ours.predictions], abs=1e-4)
    assert theirs.logits != pytest.approx([p.logit for p in whole.predictions], abs=1e-4)
    assert theirs.details["signer"] == {"box": [0.5, 0.0, 1.0, 1.0], "source": "caller", "confidence": 1.0}
    assert (theirs.details["warnings"], len(whole.warnings)) == ([], 1)
    with Recognizer(address, model="bsl1k-person", send="video", signer=box) as recognizer:
        sent = recognizer.recognize(halves)
    assert (sent.signer, sent.warnings, sent.num_frames) == (ours.signer, (), ours.num_frames)
    assert [p.logit for p in sent.predictions] == pytest.approx([p.logit for p in ours.predictions], abs=1e-4)


@pytest.mark.parametrize(("box", "error"), [
    ([234, 17, 524, 414], "is not in fractions of the frame"), ([0.7, 0, 0.3, 1], "is empty or nearly so"),
    ([float("nan"), 0, 1, 1], "is not in fractions of the frame"), ([0, 0, 1], "shape"),
])  # fmt: skip
def test_invalid_box_is_refused(preset_triton: LocalTriton, halves: Path, box: list[float], error: str) -> None:
    tensors = [*build_inputs(halves.read_bytes()), build_tensor("SIGNER_BOX", np.array(box, np.float32), "FP32")]
    with tritonclient.grpc.InferenceServerClient(preset_triton.address) as client:
        refused = ask_with(client, tensors, model="bsl1k-person")
    assert isinstance(refused, Refusal) and refused.status == "INVALID_ARGUMENT" and error in refused.message


def test_default_is_ten_glosses_and_top_k_can_be_all(preset_triton: LocalTriton, signed: list[Path]) -> None:
    video = signed[0].read_bytes()
    answers = [ask(preset_triton.address, video, model="wlasl", top_k=k) for k in (None, 1, 20)]
    assert [len(answer.glosses) for answer in answers if isinstance(answer, Answer)] == [10, 1, 20]


def test_min_confidence_removes_less_confident_glosses(strict_triton: LocalTriton, good: bytes) -> None:
    every = ask(strict_triton.address, good)
    assert isinstance(every, Answer) and len(every.glosses) == len(GLOSSES)
    between = (every.confidences[2] + every.confidences[3]) / 2
    some = ask(strict_triton.address, good, min_confidence=between)
    assert isinstance(some, Answer) and some.glosses == every.glosses[:3]
    none = ask(strict_triton.address, good, min_confidence=1.0)
    assert isinstance(none, Answer) and none.glosses == () and none.confidences == ()


def test_http_works_too(strict_triton: LocalTriton, good: bytes) -> None:
    with tritonclient.http.InferenceServerClient(strict_triton.http_address) as client:
        video = tritonclient.http.InferInput("VIDEO", [1], "BYTES")
        video.set_data_from_numpy(np.array([good], np.object_))
        result = client.infer("recognize_sign", [video], parameters={"model": "small"})
    answer = ask(strict_triton.address, good)
    assert isinstance(answer, Answer)
    assert [gloss.decode() for gloss in result.as_numpy("GLOSS")] == list(answer.glosses)


def test_concurrent_requests_are_batched(preset_triton: LocalTriton, signed: list[Path]) -> None:
    def read_statistics() -> Statistics:
        async def fetch() -> Statistics:
            transport = make_transport(preset_triton.address)
            try:
                return await transport.statistics("wlasl")
            finally:
                await transport.close()

        return asyncio.run(fetch())

    video, before = signed[0].read_bytes(), read_statistics()
    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(lambda _: ask(preset_triton.address, video, model="wlasl"), range(10)))
    after = read_statistics()
    assert all(isinstance(answer, Answer) for answer in answers)
    assert len({answer.glosses for answer in answers if isinstance(answer, Answer)}) == 1
    assert after.requests - before.requests == 10
    assert after.executions - before.executions <= 7


def build_bad_inputs(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Return bad videos by name, each with its expected error."""
    plain = clip(folder / "plain.mp4", 30)
    not_a_video = "VIDEO cannot be read as a video: it is something else, or its beginning is damaged. Supported"
    return {
        "zero bytes": (b"", "VIDEO is empty (0 bytes)"),
        "100 random bytes": (
            np.random.default_rng(0).bytes(100),
            "VIDEO cannot be read as a video: it is something else",
        ),
        "a JPEG": (
            still(folder / "still.jpg").read_bytes(),
            "it is something else, or its beginning is damaged. Supported containers: mp4, mov",
        ),
        "a PDF": (PDF, not_a_video),
        "a cut mp4": (cut(folder / "cut.mp4", plain).read_bytes(), "the file is cut off"),
        "sound alone": (audio_only(folder / "audio.mp4").read_bytes(), "it is audio only, damaged"),
        "65 MiB": (plain.read_bytes() + bytes(65 * 2**20), "VIDEO is larger than 67,108,864 bytes, the limit"),
        "16K pixels": (huge(folder / "huge.avi").read_bytes(), "beyond the limit of 8,847,360 pixels"),
    }


def test_bad_video_is_refused_with_an_explanation(
    preset_triton: LocalTriton, signed: list[Path], tmp_path: Path
) -> None:
    good = signed[0].read_bytes()
    for name, (video, message) in build_bad_inputs(tmp_path).items():
        refused = ask(preset_triton.address, video, model="wlasl")
        assert isinstance(refused, Refusal), name
        assert refused.status == "INVALID_ARGUMENT", (name, refused)
        assert message in refused.message and "\n" not in refused.message, (name, refused)
    assert isinstance(ask(preset_triton.address, good, model="wlasl"), Answer)


def test_video_of_200000_frames_is_refused(preset_triton: LocalTriton, tmp_path: Path) -> None:
    once = clip(tmp_path / "once.mp4", 1000, size="16x16", options=["-preset", "ultrafast"])
    ffmpeg("-stream_loop", "199", "-i", once, "-c", "copy", tmp_path / "long.mp4")
    refused = ask(preset_triton.address, (tmp_path / "long.mp4").read_bytes(), model="wlasl")
    assert refused == Refusal("INVALID_ARGUMENT", "VIDEO has more than 10,000 frames, the limit: cut it shorter")


def test_undeclared_frames_count_toward_the_limit(strict_triton: LocalTriton, tmp_path: Path) -> None:
    path = clip(tmp_path / "live.webm", 280, size="16x16", options=["-live", "1", "-deadline", "realtime"])
    refused = ask(strict_triton.address, path.read_bytes())
    assert isinstance(refused, Refusal) and refused.status == "INVALID_ARGUMENT"
    assert "VIDEO has more than 250 frames, the limit" in refused.message


def test_truncated_video_is_answered_with_a_warning(strict_triton: LocalTriton, tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", 40, size="320x240")
    half = cut(tmp_path / "half.mp4", faststart(tmp_path / "fast.mp4", whole), 0.6)
    answer = ask(strict_triton.address, half.read_bytes())
    assert isinstance(answer, Answer)
    assert 0 < answer.details["num_frames"] < 40
    assert "cut off" in answer.details["warnings"][0]


def test_decoding_stops_at_the_time_limit(strict_triton: LocalTriton, good: bytes, tmp_path: Path) -> None:
    coded = ["-preset", "ultrafast", "-qp", "40"]
    once = clip(tmp_path / "once.mp4", 1, size="1920x1080", options=coded)
    ffmpeg("-stream_loop", "244", "-i", once, "-c", "copy", tmp_path / "slow.mp4")
    refused = ask(strict_triton.address, (tmp_path / "slow.mp4").read_bytes())
    assert refused == Refusal(
        "INVALID_ARGUMENT", "VIDEO takes more than 1 s to decode, the limit: cut it shorter or scale it down"
    )
    assert wait_until(lambda: find_decoders(strict_triton) == [])
    assert isinstance(ask(strict_triton.address, good), Answer)


def test_decoding_stops_at_the_memory_limit(strict_triton: LocalTriton, good: bytes, tmp_path: Path) -> None:
    refused = ask(strict_triton.address, huge(tmp_path / "wide.avi", "6000x4000").read_bytes())
    assert refused == Refusal("INVALID_ARGUMENT", "VIDEO takes more than 144 MiB to decode, the limit: scale it down")
    assert isinstance(ask(strict_triton.address, good), Answer)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ({"top_k": 0}, "INVALID_ARGUMENT", "TOP_K is 0: it must be at least 1"),
        ({"top_k": -1}, "INVALID_ARGUMENT", "TOP_K is -1: it must be at least 1"),
        ({"top_k": 5000}, "INVALID_ARGUMENT", "TOP_K is 5000, but small knows only 7 glosses"),
        ({"min_confidence": 1.5}, "INVALID_ARGUMENT", "MIN_CONFIDENCE is 1.5: it must be between 0 and 1"),
        ({"min_confidence": float("nan")}, "INVALID_ARGUMENT", "MIN_CONFIDENCE is nan: it must be between 0 and 1"),
        ({"model": "big"}, "NOT_FOUND", "this server has no model 'big': its models are small"),
        ({"model": "../small"}, "NOT_FOUND", "this server has no model '../small'"),
        ({"model": "recognize_sign"}, "NOT_FOUND", "this server has no model 'recognize_sign'"),
        ({"model": 7}, "INVALID_ARGUMENT", "the parameter `model` is 7: give the name of a model"),
    ],
)
def test_invalid_parameters_are_refused_with_an_explanation(
    strict_triton: LocalTriton, good: bytes, arguments: dict[str, object], status: str, message: str
) -> None:
    refused = ask(strict_triton.address, good, **arguments)  # type: ignore[arg-type]
    assert isinstance(refused, Refusal)
    assert refused.status == status
    assert message in refused.message


def test_several_models_require_a_name(preset_triton: LocalTriton, signed: list[Path]) -> None:
    refused = ask(preset_triton.address, signed[0].read_bytes())
    assert isinstance(refused, Refusal) and refused.status == "INVALID_ARGUMENT"
    assert (
        f"this server has {len(PRESET_NAMES)} models: name one in the request's parameter `model` (asl-citizen, "
        in refused.message
    )


def test_tensors_of_wrong_type_or_shape_are_refused(strict_triton: LocalTriton, good: bytes) -> None:
    video = build_inputs(good)[0]
    raw = tritonclient.grpc.InferInput("VIDEO", [1], "BYTES")
    raw._raw_content = b"\xff\xff\xff\x7fnot as long as it says"
    wrong = {
        "bytes as numbers": ([build_tensor("VIDEO", np.frombuffer(good, np.uint8), "UINT8")], "data-type"),
        "two videos": ([build_tensor("VIDEO", np.array([good, good], np.object_), "BYTES")], "shape"),
        "a batch axis": ([build_tensor("VIDEO", np.array([[good]], np.object_), "BYTES")], "shape"),
        "no video": ([build_tensor("TOP_K", np.array([3], np.int32), "INT32")], "VIDEO"),
        "a wide TOP_K": ([video, build_tensor("TOP_K", np.array([3], np.int64), "INT64")], "data-type"),
        "two TOP_Ks": ([video, build_tensor("TOP_K", np.array([3, 4], np.int32), "INT32")], "shape"),
        "an unknown input": ([video, build_tensor("GLOSS", np.array([b"book"], np.object_), "BYTES")], "GLOSS"),
        "a torn string": ([raw], "VIDEO"),
    }
    with tritonclient.grpc.InferenceServerClient(strict_triton.address) as client:
        for name, (tensors, word) in wrong.items():
            refused = ask_with(client, tensors)
            assert isinstance(refused, Refusal), name
            assert refused.status == "INVALID_ARGUMENT" and word in refused.message, (name, refused)
            assert isinstance(ask_with(client, [video]), Answer), name


def test_bad_video_does_not_affect_concurrent_ones(strict_triton: LocalTriton, good: bytes) -> None:
    videos = [good, good, b"%PDF-1.7 no video", good, good]
    with ThreadPoolExecutor(5) as callers:
        answers = list(callers.map(lambda video: ask(strict_triton.address, video), videos))
    refused = answers.pop(2)
    assert isinstance(refused, Refusal) and refused.status == "INVALID_ARGUMENT"
    assert all(isinstance(answer, Answer) and len(answer.glosses) == 7 for answer in answers)


def test_crashed_decoder_fails_only_its_own_request(
    preset_triton: LocalTriton, signed: list[Path], tmp_path: Path
) -> None:
    stubs = {stub.pid for stub in find_stubs(preset_triton)}
    video = with_audio(tmp_path / "big.mp4", 2000, 80).read_bytes()
    with ThreadPoolExecutor(2) as callers:
        crashing = callers.submit(ask, preset_triton.address, video, model="bsl1k")
        assert wait_until(lambda: len(find_decoders(preset_triton)) == 1)
        (decoder,) = find_decoders(preset_triton)
        other = callers.submit(ask, preset_triton.address, signed[0].read_bytes(), model="wlasl")
        decoder.send_signal(11)
        refused = crashing.result()
        assert isinstance(refused, Refusal) and refused.status == "INVALID_ARGUMENT"
        assert "VIDEO cannot be decoded: it ends the decoder (SIGSEGV)" in refused.message
        assert isinstance(other.result(), Answer)
    assert {stub.pid for stub in find_stubs(preset_triton)} == stubs


def test_requests_beyond_the_queue_size_are_refused_and_others_answered(
    strict_triton: LocalTriton, good: bytes
) -> None:
    with ThreadPoolExecutor(40) as callers:
        answers = list(callers.map(lambda _: ask(strict_triton.address, good), range(40)))
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    assert len(answers) - len(refused) >= 12
    assert {answer.status for answer in refused} == {"UNAVAILABLE"}
    assert all("Exceeds maximum queue size" in answer.message for answer in refused)


def test_decoding_stops_when_the_caller_disconnects(preset_triton: LocalTriton, tmp_path: Path) -> None:
    video = clip(tmp_path / "big.mp4", 3000, options=["-preset", "ultrafast"]).read_bytes()
    refused = ask(preset_triton.address, video, model="bsl1k", timeout_s=1.0)
    assert isinstance(refused, Refusal) and refused.status == "DEADLINE_EXCEEDED"
    assert wait_until(lambda: find_decoders(preset_triton) == [])


def test_models_and_doctor_do_not_list_it_as_a_sign_model(
    strict_triton: LocalTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = asl_triton(capsys, "models", "--server", strict_triton.address, "--json")
    assert [model["name"] for model in json.loads(listed.out)] == ["small"]
    options = ("--server", strict_triton.address, "--repository", strict_triton.repository, "--json")
    checks = {check["name"]: check for check in json.loads(asl_triton(capsys, "doctor", *options).out)["checks"]}
    assert checks["recognize_sign"]["state"] == "ok"
    assert checks["small: golden answer"]["state"] == "ok"
