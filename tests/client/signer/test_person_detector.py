"""The person detector, run by OpenVINO with a stand-in network that finds bright areas."""

import asyncio
from pathlib import Path

import av
import numpy as np
import pytest

from asl_triton.errors import AslTritonError
from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Recognition
from asl_triton.signer import person_detector
from asl_triton.signer.detector import find_signer
from asl_triton.signer.person_detector import FOLDER_VARIABLE, MODEL, find_people
from asl_triton.signer.search import frame_signer
from asl_triton.video.reader import Frame
from tests.client.served import fake
from tests.client.signer.bright_detector import save_bright_detector

PERSON = (900, 200, 1220, 900)  # left, top, right and bottom in a frame of 1920 x 1080


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the client looks for the detector."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    person_detector.load_detector.cache_clear()
    return tmp_path


def paint_person(gray: int = 255) -> np.ndarray:
    image = np.full((1080, 1920, 3), 60, np.uint8)
    x0, y0, x1, y1 = PERSON
    image[y0:y1, x0:x1] = gray
    return image


def test_person_without_a_face_is_found(folder: Path) -> None:
    save_bright_detector(folder / MODEL)
    people = find_people([paint_person()] * 3)
    assert people is not None and people.shape == (3, 4)
    np.testing.assert_allclose(people, [PERSON] * 3, atol=8)
    estimate = find_signer([paint_person()] * 3)
    assert estimate.box is not None and (estimate.box.source, estimate.box.confidence) == ("person", 1.0)
    assert estimate.box.x0 * 1920 == pytest.approx(900, abs=10) and estimate.box.x1 * 1920 == pytest.approx(
        1220, abs=10
    )
    assert estimate.box.y0 * 1080 == pytest.approx(200, abs=10)
    assert estimate.box.y1 * 1080 < 750  # the waist of a standing person
    framed = frame_signer([Frame(paint_person(), n / 25) for n in range(6)], PRESETS["wlasl"])
    assert framed.signer is not None and framed.warnings == ()


def test_no_signer_is_found_if_the_detector_finds_no_one(folder: Path) -> None:
    save_bright_detector(folder / MODEL)
    people = find_people([paint_person(gray=60)])
    assert people is not None and len(people) == 0
    assert find_signer([paint_person(gray=60)] * 3).box is None


def test_missing_detector_is_not_used(folder: Path) -> None:
    assert find_people([paint_person()]) is None
    assert find_signer([paint_person()] * 3).box is None


@pytest.mark.parametrize("content", ["", "<net name='x'>", "not a network"])
def test_invalid_detector_file_is_reported(folder: Path, content: str) -> None:
    pytest.importorskip("openvino")
    (folder / MODEL).write_text(content)
    with pytest.raises(AslTritonError, match="fetch it again with `asl-triton fetch signer-detector --force`"):
        find_people([paint_person()])


def test_another_network_is_rejected(folder: Path) -> None:
    save_bright_detector(folder / MODEL, columns=7)
    with pytest.raises(AslTritonError, match="is not the signer detector"):
        find_people([paint_person()])


def test_decoder_processes_find_the_person_too(folder: Path) -> None:
    """Decoder processes have limited memory and cannot write files."""
    save_bright_detector(folder / MODEL)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(paint_person(), format="bgr24")))
        container.mux(stream.encode(None))

    async def recognize() -> Recognition:
        transport = fake()
        async with AsyncRecognizer(transport=transport, decoding="processes") as recognizer:
            return await recognizer.recognize(folder / "clip.mp4")

    recognition = asyncio.run(recognize())
    assert recognition.signer is not None and recognition.warnings == ()
    assert recognition.signer.x0 * 1920 < 900 and recognition.signer.x1 * 1920 > 1220
