"""`asl-triton export` on the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from asl_triton.models.card import ModelCard
from asl_triton.models.repository import read_folder
from tests.command_line import asl_triton
from tests.networks import save_checkpoint, save_labels


def test_export_prints_what_it_wrote_and_the_next_step(tmp_path: Path) -> None:
    checkpoint, labels = save_checkpoint(tmp_path / "FINAL_nslt_7.pt"), save_labels(tmp_path / "labels.txt")
    command = [sys.executable, "-m", "asl_triton", "export", checkpoint, "--labels", labels]
    command += ["--repository", tmp_path / "models", "--instances", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "FINAL_nslt_7: 7 glosses, fp32" in done.stdout
    assert "asl-triton serve" in done.stdout
    assert "count: 2" in (tmp_path / "models" / "FINAL_nslt_7" / "config.pbtxt").read_text()
    listed = (tmp_path / "models" / "SHA256SUMS").read_text()
    assert [line.split()[1] for line in listed.splitlines()] == [
        f"FINAL_nslt_7/{name}"
        for name in (
            "1/model.pt",
            "1/model.py",
            "config.pbtxt",
            "configs/cpu.pbtxt",
            "configs/wheel.pbtxt",
            "golden.npz",
            "labels.txt",
        )
    ]


def test_options_override_the_card_of_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    save_checkpoint(bundle / "weights.pt")
    save_labels(bundle / "labels.txt")
    (bundle / "card.json").write_text('{"purpose": "seven signs", "caveat": "small", "min_confidence": 0.4}')
    options = ("export", bundle, "--repository", tmp_path / "models")
    overrides = ("--caveat", "", "--min-confidence", 0.5, "--name", "other")
    for more in ((), overrides):
        done = asl_triton(capsys, *options, *more)
        assert done.code == 0, done.output
    assert read_folder(tmp_path / "models" / "bundle").served.card == ModelCard(
        purpose="seven signs", caveat="small", min_confidence=0.4
    )
    card = ModelCard(purpose="seven signs", min_confidence=0.5)
    assert read_folder(tmp_path / "models" / "other").served.card == card
    done = asl_triton(capsys, *options, "--force", "--purpose", "x" * 501)
    assert done.code == 1 and "purpose must be a text of at most 500 characters" in done.output


@pytest.mark.parametrize(("arguments", "says", "code"), [
    (["weights.pt"], "Give --labels", 1),
    (["weights.pt", "--labels", "nowhere.txt"], "cannot read the labels", 1),
    (["nowhere.pt", "--labels", "labels.txt"], "there is no checkpoint", 1),
    (["labels.txt", "--labels", "labels.txt"], "not a PyTorch checkpoint", 1),
    (["weights.pt", "--labels", "labels.txt", "--preset", "wlasI"], "neither a preset", 1),
    (["weights.pt", "--labels", "labels.txt", "--name", "a b"], "is not a valid model name", 1),
    (["weights.pt", "--labels", "labels.txt", "--precision", "int3"], "Invalid value", 2),
    ([], "Missing argument", 2),
])  # fmt: skip
def test_bad_input_is_reported_with_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "weights.pt")
    save_labels(tmp_path / "labels.txt")
    done = asl_triton(capsys, "export", *arguments)
    assert done.code == code
    assert says in " ".join(done.err.split())
    assert not (tmp_path / "model_repository").exists()
