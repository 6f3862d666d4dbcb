"""A person through the demo model: every face gives the same verdict and the same warning."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asl_triton import Recognizer
from asl_triton.models.repository import read_folder
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.bundle import open_bundle
from tests.command_line import Done, asl_triton
from tests.live.sign_client import Answer, ask
from tests.local_triton import serve
from tests.paths import DEMO_BUNDLE

Capture = pytest.CaptureFixture[str]
CARD = open_bundle(DEMO_BUNDLE).card
CAVEAT = "demo model: knows an animated signer, not people"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """The demo checkpoint as `asl-triton export demo` writes it, and `recognize_sign`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("honest"))
        asl_triton_export(Path("models"))
        with serve(Path("models").resolve(), recognize_sign=True) as server:
            yield server


def asl_triton_export(repository: Path) -> None:
    """`asl-triton export demo`."""
    from asl_triton.cli.app import app

    with pytest.raises(SystemExit) as ended:
        app(["export", "demo", "--repository", str(repository), "--precision", "auto"])
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def clip(shared_folder: Path) -> Path:
    """A person who signs `book`."""
    return shared_folder / "wlasl" / "videos" / "07068.mp4"


def run(capsys: Capture, triton: LocalTriton, command: str, *arguments: object) -> Done:
    done = asl_triton(capsys, command, *arguments, "--server", triton.address)
    assert done.code == 0, done.told
    return done


def test_demo_brings_a_purpose_a_warning_and_a_threshold(triton: LocalTriton, capsys: Capture) -> None:
    assert CARD.purpose and CARD.caveat == CAVEAT and CARD.min_confidence is not None
    assert read_folder(triton.repository / "demo").served.card == CARD
    (model,) = json.loads(run(capsys, triton, "models", "--json").out)
    assert (model["purpose"], model["caveat"]) == (CARD.purpose, CAVEAT)
    assert model["min_confidence"] == CARD.min_confidence
    checks = json.loads(run(capsys, triton, "doctor", "--json").out)["checks"]
    assert [check["found"] for check in checks if check["name"] == "demo: purpose"] == [CARD.describe()]


def test_every_face_has_the_same_verdict_and_warning(
    triton: LocalTriton, clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    verdicts: dict[str, tuple[Any, ...]] = {}

    def keep(face: str, gloss: str, unsure: bool | None, warnings: list[str] | tuple[str, ...]) -> None:
        verdicts[face] = (gloss, unsure, tuple(warnings))

    with Recognizer(triton.address) as recognizer:
        ours = recognizer.recognize(clip)
        keep("Python", ours.gloss, ours.unsure, ours.warnings)
        with_curves, _ = recognizer.recognize_with_curves(clip)
        keep("Python, with curves", with_curves.gloss, with_curves.unsure, with_curves.warnings)
        assert CAVEAT in recognizer.timeline(clip).warnings
    for send in ("frames", "video"):
        line = json.loads(run(capsys, triton, "recognize", clip, "--json", "--send", send).out)
        keep(f"recognize --send {send}", line["predictions"][0]["gloss"], line["unsure"], line["warnings"])
    output = tmp_path / "out"
    done = run(capsys, triton, "batch", clip, "--output", output, "--format", "jsonl,csv")
    line = json.loads((output / "results.jsonl").read_text())
    keep("batch", line["predictions"][0]["gloss"], line["unsure"], line["warnings"])
    assert f"demo: {CARD.purpose}" in done.err and f"warning 07068.mp4: {CAVEAT}" in done.told
    assert "True" in (output / "results.csv").read_text()
    answer = ask(triton.address, clip.read_bytes())
    assert isinstance(answer, Answer)
    keep("recognize_sign", answer.glosses[0], answer.details["unsure"], answer.details["warnings"])
    assert set(verdicts.values()) == {(ours.gloss, True, (CAVEAT,))}, verdicts
    assert len(answer.glosses) == 10  # the model's threshold takes no gloss away

    shown = run(capsys, triton, "recognize", clip)
    assert "07068.mp4 (unsure)" in shown.told and f"warning {CAVEAT}" in shown.told
    assert f"demo: {CARD.purpose}" in shown.err


def test_threshold_asked_for_counts_everywhere(triton: LocalTriton, clip: Path, capsys: Capture) -> None:
    with Recognizer(triton.address) as recognizer:
        assert recognizer.recognize(clip, min_confidence=0.01).unsure is False
    for send in ("frames", "video"):
        options = ("--json", "--send", send, "--min-confidence", "0.01")
        assert json.loads(run(capsys, triton, "recognize", clip, *options).out)["unsure"] is False
    answer = ask(triton.address, clip.read_bytes(), min_confidence=0.01)
    assert isinstance(answer, Answer) and answer.details["unsure"] is False


def test_watch_warns_before_the_first_sign(triton: LocalTriton, clip: Path, capsys: Capture) -> None:
    events = [json.loads(line) for line in run(capsys, triton, "watch", clip, "--json").out.splitlines()]
    assert events[0] == {"event": "warning", "warning": CAVEAT}
    assert CAVEAT in run(capsys, triton, "watch", clip).err


def test_clip_of_the_demo_signer_is_sure(triton: LocalTriton, capsys: Capture) -> None:
    from asl_triton_ui.samples import SAMPLES

    for sample in SAMPLES:
        line = json.loads(run(capsys, triton, "recognize", sample.path, "--json").out)
        assert (line["predictions"][0]["gloss"], line["unsure"]) == (sample.gloss, False)
