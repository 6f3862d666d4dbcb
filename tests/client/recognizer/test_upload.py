"""Sending a clip's file instead of its frames: when it happens, what is sent, and how answers are read."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from asl_triton.errors import AslTritonError, ContractError, LabelsError, VideoError
from asl_triton.models.card import ModelCard
from asl_triton.presets import PRESETS, Preset
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Recognition, SignerBox
from asl_triton.transport.base import Array, ModelDescription, TensorSpec
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.excerpt import Excerpt
from asl_triton.video.reader import Limits
from tests.client import videos
from tests.client.served import GLOSSES, answering, described, in_order

ROOMY = {"asl_triton.max_bytes": "67108864", "asl_triton.max_frames": "10000", "asl_triton.max_pixels": "8847360"}
DETAILS = {"num_frames": 12, "duration_s": 0.48, "num_windows": 1, "decode_s": 0.01, "wait_s": 0.1, "warnings": ["cut"]}


def sign_model(
    limits: Mapping[str, str] = ROOMY,
    outputs: tuple[str, ...] = ("CLASS_ID", "LOGIT", "DETAILS"),
    takes_box: bool = True,
) -> ModelDescription:
    box = {"SIGNER_BOX": TensorSpec("FP32", (4,))} if takes_box else {}
    return ModelDescription(
        name="recognize_sign",
        version="1",
        inputs={"VIDEO": TensorSpec("BYTES", (1,)), "TOP_K": TensorSpec("INT32", (1,)), **box},
        outputs={name: TensorSpec("FP32", (-1,)) for name in outputs},
        parameters=limits,
    )


class Server(FakeTransport):
    """Serves `signs` and `recognize_sign`, which raises `refusal` if given, and else ranks the last class first."""

    def __init__(
        self,
        model: ModelDescription | None,
        refusal: Exception | None = None,
        classes: int = 6,
        preset: Preset = PRESETS["wlasl"],
    ) -> None:
        models = {"signs": described(preset)} | ({"recognize_sign": model} if model else {})
        super().__init__(models, GLOSSES, self.outputs)
        self.refusal, self.classes = refusal, classes
        self.details: dict[str, object] = {**DETAILS}
        self.files: list[bytes] = []
        self.boxes: list[list[float] | None] = []
        self.parameters: list[Mapping[str, str] | None] = []

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.parameters.append(parameters)
        return await super().infer(model, inputs, outputs, priority, parameters)

    def outputs(self, model: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if model == "signs":
            return answering(in_order)(model, inputs)
        self.files.append(inputs["VIDEO"][0])
        self.boxes.append(inputs["SIGNER_BOX"].tolist() if "SIGNER_BOX" in inputs else None)
        assert inputs["TOP_K"].tolist() == [len(GLOSSES)]
        if self.refusal:
            raise self.refusal
        return {
            "CLASS_ID": np.arange(self.classes, dtype=np.int32)[::-1],
            "LOGIT": -np.arange(self.classes, dtype=np.float32),
            "DETAILS": np.array([json.dumps(self.details).encode()], np.object_),
        }


def recognize(server: Server, video: object, send: str, limits: Limits | None = None, **options: object) -> Recognition:
    async def ask() -> Recognition:
        async with AsyncRecognizer(transport=server, send=send, limits=limits) as recognizer:  # type: ignore[arg-type]
            return await recognizer.recognize(video, **options)  # type: ignore[arg-type]

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=12, size="64x48")


def test_file_is_sent_unchanged_and_its_logits_are_ranked_by_the_client(clip: Path) -> None:
    server = Server(sign_model())
    recognition = recognize(server, clip, "video", top_k=3, vocabulary=["mother", "book", "help"], min_confidence=0.7)
    assert server.files == [clip.read_bytes()] and server.parameters == [{"model": "signs"}]
    assert [(p.rank, p.gloss, p.logit) for p in recognition.predictions] == [
        (1, "mother", 0.0), (2, "help", -2.0), (3, "book", -5.0)
    ]  # fmt: skip
    assert recognition.confidence == 0.5 and recognition.unsure
    assert (recognition.video, recognition.model) == (str(clip), "signs")
    assert (recognition.num_frames, recognition.num_windows, recognition.warnings) == (12, 1, ("cut",))
    assert recognition.duration_s == 0.48 and recognition.decode_s == 0.01 and recognition.wait_s >= 0


def test_models_warning_is_reported_exactly_once(clip: Path) -> None:
    card = ModelCard(caveat="an example", min_confidence=0.6)
    server = Server(sign_model())  # an earlier version: its DETAILS lack the warning
    server.models["signs"] = described(**card.to_parameters())
    found = recognize(server, clip, "video")
    assert (found.unsure, found.warnings) == (True, ("an example", "cut"))
    server.details["warnings"] = ["an example", "cut"]
    assert recognize(server, clip, "video").warnings == ("an example", "cut")


def test_bytes_and_file_objects_are_sent_unchanged(clip: Path) -> None:
    server = Server(sign_model())
    for send in ("video", "auto"):
        with clip.open("rb") as file:
            answers = [recognize(server, source, send) for source in (clip.read_bytes(), file)]
        assert [answer.video for answer in answers] == ["the video"] * 2
    assert server.files == [clip.read_bytes()] * 4


@pytest.mark.parametrize(("send", "model", "is_file"), [
    ("frames", sign_model(), False),
    ("video", sign_model(), True),
    ("auto", sign_model(), True),
    ("auto", None, False),
    ("auto", sign_model(outputs=("GLOSS", "CONFIDENCE")), False),  # not our model
    ("auto", sign_model({"asl_triton.max_frames": "11"}), False),
    ("auto", sign_model({"asl_triton.max_frames": "12"}), True),
    ("auto", sign_model({"asl_triton.max_pixels": "3071"}), False),
    ("auto", sign_model({"asl_triton.max_bytes": "100"}), False),
    ("auto", sign_model({}), True),
])  # fmt: skip
def test_file_is_sent_only_if_the_server_accepts_it(
    clip: Path, send: str, model: ModelDescription | None, is_file: bool
) -> None:
    server = Server(model)
    assert recognize(server, clip, send).gloss == ("mother" if is_file else "book")
    assert len(server.files) == is_file


def test_auto_sends_frames_if_they_are_smaller_than_the_file(tmp_path: Path) -> None:
    options = ["-c:v", "rawvideo", "-pix_fmt", "bgr24"]
    path = videos.clip(tmp_path / "raw.avi", num_frames=10, size="320x240", options=options)
    assert path.stat().st_size > 10 * 224 * 224 * 3
    server = Server(sign_model())
    recognize(server, path, "auto")
    assert server.files == []


def test_auto_sends_frames_if_the_container_lacks_a_frame_count(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "live.webm", 12, size="16x16", options=["-live", "1", "-deadline", "realtime"])
    server = Server(sign_model())
    recognize(server, path, "auto")
    assert server.files == []


def test_server_without_uploads_is_reported_before_the_clip_is_opened() -> None:
    with pytest.raises(
        ContractError, match=r"does not serve recognize_sign.*send frames \(--send frames\), or serve it"
    ):
        recognize(Server(None), "no such clip.mp4", "video")


def test_refusal_names_the_clip(clip: Path) -> None:
    refusal = VideoError("VIDEO cannot be decoded: it ends the decoder (SIGSEGV)")
    with pytest.raises(VideoError, match=r"^mine cannot be decoded"):
        recognize(Server(sign_model(), refusal), clip, "video", name="mine")


@pytest.mark.parametrize(("limits", "model"), [
    (Limits(max_bytes=100), sign_model()), (None, sign_model({"asl_triton.max_bytes": "100"})),
], ids=["ours", "theirs"])  # fmt: skip
def test_file_beyond_a_limit_is_not_sent(clip: Path, limits: Limits | None, model: ModelDescription) -> None:
    server = Server(model)
    with pytest.raises(VideoError, match=r"larger than 100 bytes.*send its frames \(--send frames\)"):
        recognize(server, clip, "video", limits)
    assert server.files == []


@pytest.mark.parametrize("send", ["video", "auto"])
def test_missing_file_gives_the_same_error_as_with_frames(tmp_path: Path, send: str) -> None:
    for path in (tmp_path / "nowhere.mp4", tmp_path):
        with pytest.raises(VideoError) as ours:
            recognize(Server(sign_model()), path, "frames")
        with pytest.raises(VideoError) as theirs:
            recognize(Server(sign_model()), path, send)
        assert str(theirs.value) == str(ours.value)


@pytest.mark.parametrize(("options", "error"), [
    ({"top_k": 0}, AslTritonError), ({"vocabulary": ["cat"]}, LabelsError),
], ids=str)  # fmt: skip
def test_invalid_options_are_rejected_before_anything_is_sent(
    options: dict[str, object], error: type[AslTritonError]
) -> None:
    server = Server(sign_model())
    with pytest.raises(error):
        recognize(server, "no such clip.mp4", "video", **options)


def test_answer_with_a_wrong_number_of_classes_is_rejected(clip: Path) -> None:
    with pytest.raises(ContractError, match="5 logits for 6 glosses"):
        recognize(Server(sign_model(), classes=5), clip, "video")


def test_server_is_queried_once_for_what_it_accepts(clip: Path) -> None:
    asked: list[str] = []

    class Counting(Server):
        async def describe(self, model: str) -> ModelDescription:
            asked.append(model)
            return await super().describe(model)

    async def ask() -> None:
        async with AsyncRecognizer(transport=Counting(sign_model()), model="signs", send="auto") as recognizer:
            for _ in range(3):
                await recognizer.recognize(clip)

    asyncio.run(ask())
    assert asked == ["signs", "recognize_sign"]


BOX = SignerBox(0.5, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(("send", "takes_box", "as_file"), [
    ("video", True, True), ("auto", True, True), ("auto", False, False), ("frames", True, False)
])  # fmt: skip
def test_signers_box_is_sent_if_the_server_accepts_it(clip: Path, send: str, takes_box: bool, as_file: bool) -> None:
    server = Server(sign_model(takes_box=takes_box), preset=PRESETS["bsl1k-person"])
    recognition = recognize(server, clip, send, signer=BOX)
    assert server.boxes == ([[0.5, 0.0, 1.0, 1.0]] if as_file else [])
    assert as_file or recognition.signer == BOX


def test_server_without_box_input_is_reported_if_files_are_required(clip: Path) -> None:
    server = Server(sign_model(takes_box=False), preset=PRESETS["bsl1k-person"])
    with pytest.raises(ContractError, match=r"does not take the signer's box: send frames \(--send frames\)"):
        recognize(server, clip, "video", signer=BOX)


def test_excerpt_is_sent_as_frames(clip: Path) -> None:
    server = Server(sign_model())
    assert recognize(server, clip, "auto", excerpt=Excerpt(0, 20)).num_windows == 1
    assert server.files == []
    with pytest.raises(ContractError, match="takes whole videos, not a part of one"):
        recognize(server, clip, "video", excerpt=Excerpt(0, 20))
