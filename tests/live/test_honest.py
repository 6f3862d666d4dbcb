"""A clip of a person with the demo model: every interface gives the same verdict and warning."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asl_triton import Recognizer
from asl_triton.models.repository import read_folder
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.bundle import open_bundle
from tests.command_line import CommandResult, asl_triton
from tests.live.sign_client import Answer, ask
from tests.local_triton import serve
from tests.paths import DEMO_BUNDLE

Capture = pytest.CaptureFixture[str]
CARD = open_bundle(DEMO_BUNDLE).card
CAVEAT = "demo model: knows an animated signer, not people"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve the demo checkpoint as exported by `asl-triton export demo`, and `recognize_sign`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("honest"))
        export_demo(Path("models"))
        with serve(Path("models").resolve(), recognize_sign=True) as server:
            yield server


def export_demo(repository: Path) -> None:
    """Run `asl-triton export demo`."""
    from asl_triton.cli.app import app

    with pytest.raises(SystemExit) as ended:
        app(["export", "demo", "--repository", str(repository), "--precision", "auto"])
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def clip(shared_folder: Path) -> Path:
    """Return a clip of a person signing `book`."""
    return shared_folder / "wlasl" / "videos" / "07068.mp4"


def run_command(capsys: Capture, triton: LocalTriton, command: str, *arguments: object) -> CommandResult:
    done = asl_triton(capsys, command, *arguments, "--server", triton.address)
    assert done.code == 0, done.output
    return done


def test_demo_has_a_purpose_a_caveat_and_a_threshold(triton: LocalTriton, capsys: Capture) -> None:
    assert CARD.purpose and CARD.caveat == CAVEAT and CARD.min_confidence is not None
    assert read_folder(triton.repository / "demo").served.card == CARD
    (model,) = json.loads(run_command(capsys, triton, "models", "--json").out)
    assert (model["purpose"], model["caveat"]) == (CARD.purpose, CAVEAT)
    assert model["min_confidence"] == CARD.min_confidence
    checks = json.loads(run_command(capsys, triton, "doctor", "--json").out)["checks"]
    assert [check["found"] for check in checks if check["name"] == "demo: purpose"] == [CARD.describe()]


def test_every_interface_gives_the_same_verdict_and_warning(
    triton: LocalTriton, clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    verdicts: dict[str, tuple[Any, ...]] = {}

    def record_verdict(interface: str, gloss: str, unsure: bool | None, warnings: list[str] | tuple[str, ...]) -> None:
        verdicts[interface] = (gloss, unsure, tuple(warnings))

    with Recognizer(triton.address) as recognizer:
        ours = recognizer.recognize(clip)
        record_verdict("Python", ours.gloss, ours.unsure, ours.warnings)
        with_curves, _ = recognizer.recognize_with_curves(clip)
        record_verdict("Python, with curves", with_curves.gloss, with_curves.unsure, with_curves.warnings)
        assert CAVEAT in recognizer.timeline(clip).warnings
    for send in ("frames", "video"):
        line = json.loads(run_command(capsys, triton, "recognize", clip, "--json", "--send", send).out)
        record_verdict(f"recognize --send {send}", line["predictions"][0]["gloss"], line["unsure"], line["warnings"])
    output = tmp_path / "out"
    done = run_command(capsys, triton, "batch", clip, "--output", output, "--format", "jsonl,csv")
    line = json.loads((output / "results.jsonl").read_text())
    record_verdict("batch", line["predictions"][0]["gloss"], line["unsure"], line["warnings"])
    assert f"demo: {CARD.purpose}" in done.err and f"warning 07068.mp4: {CAVEAT}" in done.output
    assert "True" in (output / "results.csv").read_text()
    answer = ask(triton.address, clip.read_bytes())
    assert isinstance(answer, Answer)
    record_verdict("recognize_sign", answer.glosses[0], answer.details["unsure"], answer.details["warnings"])
    assert set(verdicts.values()) == {(ours.gloss, True, (CAVEAT,))}, verdicts
    assert len(answer.glosses) == 10  # the model's threshold does not remove glosses

    printed = run_command(capsys, triton, "recognize", clip)
    assert "07068.mp4 (unsure)" in printed.output and f"warning {CAVEAT}" in printed.output
    assert f"demo: {CARD.purpose}" in printed.err


def test_requested_threshold_applies_everywhere(triton: LocalTriton, clip: Path, capsys: Capture) -> None:
    with Recognizer(triton.address) as recognizer:
        assert recognizer.recognize(clip, min_confidence=0.01).unsure is False
    for send in ("frames", "video"):
        options = ("--json", "--send", send, "--min-confidence", "0.01")
        assert json.loads(run_command(capsys, triton, "recognize", clip, *options).out)["unsure"] is False
    answer = ask(triton.address, clip.read_bytes(), min_confidence=0.01)
    assert isinstance(answer, Answer) and answer.details["unsure"] is False


def test_watch_warns_before_the_first_sign(triton: LocalTriton, clip: Path, capsys: Capture) -> None:
    events = [json.loads(line) for line in run_command(capsys, triton, "watch", clip, "--json").out.splitlines()]
    assert events[0] == {"event": "warning", "warning": CAVEAT}
    assert CAVEAT in run_command(capsys, triton, "watch", clip).err


def test_clips_of_the_demo_signer_are_sure(triton: LocalTriton, capsys: Capture) -> None:
    from asl_triton_ui.samples import SAMPLES

    for sample in SAMPLES:
        line = json.loads(run_command(capsys, triton, "recognize", sample.path, "--json").out)
        assert (line["predictions"][0]["gloss"], line["unsure"]) == (sample.gloss, False)
