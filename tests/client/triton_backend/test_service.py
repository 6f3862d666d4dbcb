"""The video service, from video bytes to glosses, on a fake Triton."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from asl_triton.errors import AslTritonError, ContractError, LabelsError, ServerError, VideoError
from asl_triton.models.card import ModelCard
from asl_triton.models.recognize_sign import format_details
from asl_triton.models.repository import read_repositories
from asl_triton.presets import PRESETS, Preset
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Recognition
from asl_triton.transport.base import Array
from asl_triton.triton_backend.service import (
    ServiceLimits,
    SignService,
    Status,
    StreamedWindow,
    UnknownModelError,
    get_grpc_status,
)
from tests.client.model_folders import FakeTriton, Network, write_folder
from tests.client.served import fake
from tests.client.videos import PDF, clip
from tests.paths import ROOT

NETWORK = Network(5)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 100).read_bytes()


def run_service(
    repository: Path,
    use: Callable[[SignService], Coroutine[Any, Any, Any]],
    server: FakeTriton | None = None,
    limits: ServiceLimits | None = None,
) -> Any:
    """Run `use` with a service of the models in `repository`."""

    async def run() -> Any:
        models = read_repositories([repository])
        service = SignService(models, server or FakeTriton({"signs": NETWORK}), limits or ServiceLimits())
        try:
            return await use(service)
        finally:
            service.close()

    return asyncio.run(run())


async def collect_windows(service: SignService, video: bytes, top_k: int) -> list[StreamedWindow]:
    async with aclosing(service.recognize_windows(video, top_k)) as windows:
        return [window async for window in windows]


def recognize_with_client(video: bytes, preset: Preset) -> Recognition:
    """Return our client's answer for the same video and network."""

    async def recognize() -> Recognition:
        transport = fake(preset, lambda frames: NETWORK.logits(frames[None])[0])
        async with AsyncRecognizer(transport=transport) as recognizer:
            return await recognizer.recognize(video)

    return asyncio.run(recognize())


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_answer_equals_that_of_the_client(tmp_path: Path, video: bytes, preset: Preset) -> None:
    write_folder(tmp_path, "signs", NETWORK, preset=preset)
    ours = run_service(tmp_path, lambda service: service.recognize(video))
    theirs = recognize_with_client(video, preset)
    assert ours.predictions == theirs.predictions
    assert (ours.num_frames, ours.duration_s, ours.num_windows) == (
        theirs.num_frames,
        theirs.duration_s,
        theirs.num_windows,
    )


def test_windows_of_a_long_video_are_in_order(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path, "signs", NETWORK)
    windows = run_service(tmp_path, lambda service: collect_windows(service, video, top_k=2))
    assert [t for w in windows for t in (w.start_s, w.end_s)] == pytest.approx([0, 2.56, 1.28, 3.84, 1.44, 4])
    assert all(len(w.predictions) == 2 for w in windows)


def test_min_confidence_can_remove_all_glosses(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path, "signs", NETWORK)
    recognition = run_service(tmp_path, lambda service: service.recognize(video, min_confidence=1.0))
    assert recognition.predictions == ()
    assert recognition.unsure is True


def test_models_threshold_judges_the_answer_but_keeps_all_glosses(tmp_path: Path, video: bytes) -> None:
    for threshold, is_unsure in ((1.0, True), (0.0, False), (None, None)):
        card = ModelCard(caveat="an example", min_confidence=threshold)
        write_folder(tmp_path, "signs", NETWORK, card=card)
        recognition = run_service(tmp_path, lambda service: service.recognize(video))
        assert (recognition.unsure, len(recognition.predictions)) == (is_unsure, 6)
        assert recognition.warnings == ("an example",)
        details = json.loads(format_details(recognition))
        assert (details["unsure"], details["warnings"]) == (is_unsure, ["an example"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"top_k": 0}, "TOP_K is 0: it must be at least 1"),
        ({"top_k": -1}, "TOP_K is -1"),
        ({"min_confidence": -0.1}, r"MIN_CONFIDENCE is -0.1: it must be between 0 and 1"),
        ({"min_confidence": float("nan")}, "MIN_CONFIDENCE is nan"),
    ],
)
def test_out_of_range_request_is_rejected(tmp_path: Path, video: bytes, values: dict[str, Any], sentence: str) -> None:
    write_folder(tmp_path, "signs", NETWORK)
    with pytest.raises(AslTritonError, match=sentence):
        run_service(tmp_path, lambda service: service.recognize(video, **values))


@pytest.mark.parametrize(("top_k", "answered"), [(None, 6), (6, 6), (10, 6), (11, None), (5000, None)])
def test_top_k_beyond_the_models_glosses_is_rejected(
    tmp_path: Path, video: bytes, top_k: int | None, answered: int | None
) -> None:
    write_folder(tmp_path, "signs", NETWORK)

    def ask() -> Recognition:
        answer: Recognition = run_service(tmp_path, lambda service: service.recognize(video, top_k))
        return answer

    if answered is None:
        with pytest.raises(AslTritonError, match=f"TOP_K is {top_k}, but signs knows only 6 glosses"):
            ask()
    else:
        assert len(ask().predictions) == answered


def test_limits_are_read_from_the_config() -> None:
    limits = ServiceLimits.from_parameters({"asl_triton.max_bytes": "1000", "asl_triton.repository": "/models"})
    assert limits == ServiceLimits(max_bytes=1000)
    assert limits.video.max_bytes == 1000
    for value in ("0", "-1", "many", "1.5", ""):
        with pytest.raises(AslTritonError, match=r"asl_triton.max_frames is .*: give a whole number above 0"):
            ServiceLimits.from_parameters({"asl_triton.max_frames": value})


@pytest.mark.parametrize(
    ("model", "limits"),
    [
        ("recognize_sign", ServiceLimits()),
        ("recognize_sign_stream", ServiceLimits(max_frames=180_000, max_decode_s=600)),
    ],
)
def test_shipped_configs_and_their_readme_list_the_limits(model: str, limits: ServiceLimits) -> None:
    repository = ROOT / "model_repository"
    config = text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert ServiceLimits.from_parameters(parameters) == limits
    page = (repository / "README.md").read_text()
    assert all(f"`{name}`" in page for name in parameters)
    assert all(f"`{tensor.name}`" in page for tensor in (*config.input, *config.output))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (VideoError("not a video"), "INVALID_ARG"),
        (AslTritonError("TOP_K is 0"), "INVALID_ARG"),
        (UnknownModelError("none of that name"), "NOT_FOUND"),
        (ServerError("its queue is full"), "UNAVAILABLE"),
        (ContractError("not a number"), "INTERNAL"),
        (LabelsError("too few"), "INTERNAL"),
    ],
)
def test_status_depends_on_whose_fault_it_is(error: AslTritonError, status: Status) -> None:
    assert get_grpc_status(error) == status


@dataclass
class HoldingTriton(FakeTriton):
    """A server that holds its answers until `release` is set, and counts the frames it receives."""

    frames: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        self.frames += inputs["FRAMES__0"].shape[1]
        await self.release.wait()
        return await super().infer(model, inputs, outputs)


def test_concurrent_videos_hold_no_more_crops_than_allowed(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path, "signs", NETWORK, golden=False)
    server = HoldingTriton({"signs": NETWORK})

    async def crowd(service: SignService) -> int:
        answering = [asyncio.create_task(service.recognize(video)) for _ in range(6)]
        while server.frames < 200:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        num_frames = server.frames
        server.release.set()
        await asyncio.gather(*answering)
        return num_frames

    assert run_service(tmp_path, crowd, server, ServiceLimits(crops_at_once=250)) == 200
    assert server.frames == 600


def test_canceled_request_frees_its_slot(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path, "signs", NETWORK)
    server = FakeTriton({"signs": NETWORK})

    async def give_up(service: SignService) -> Recognition:
        for delay_s in np.linspace(0, 0.3, 12):
            given_up = asyncio.create_task(service.recognize(video))
            await asyncio.sleep(delay_s)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
        return await service.recognize(video)

    assert run_service(tmp_path, give_up, server, ServiceLimits(requests_at_once=1)).num_frames == 100


def test_bad_video_is_rejected_and_the_next_one_answered(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path, "signs", NETWORK)

    async def ask(service: SignService) -> Recognition:
        with pytest.raises(VideoError, match="VIDEO cannot be read as a video"):
            await service.recognize(PDF)
        return await service.recognize(video)

    assert run_service(tmp_path, ask).num_frames == 100


def test_stream_can_be_closed_early(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path, "signs", NETWORK)

    async def read_one(service: SignService) -> StreamedWindow:
        windows: AsyncGenerator[StreamedWindow, None] = service.recognize_windows(video)
        async with aclosing(windows):
            return await anext(windows)

    assert run_service(tmp_path, read_one).start_s == 0
