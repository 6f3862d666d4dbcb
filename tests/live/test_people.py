"""The presets for people, through Triton: a batch gives the same answers as the authors' code."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from asl_triton.presets import PRESETS
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.command_line import CommandResult, asl_triton

Capture = pytest.CaptureFixture[str]
SIZES = {"07068": (736, 414), "07069": (1280, 720)}


@pytest.fixture(scope="module")
def people(shared_folder: Path) -> Mapping[str, np.ndarray]:
    with np.load(shared_folder / "reference" / "expected_people.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def triton(reference_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    folder = tmp_path_factory.mktemp("people")
    checkpoint = load_checkpoint(reference_checkpoint)
    labels = tuple(f"gloss {number}" for number in range(checkpoint.num_classes))
    for name in ("asl-citizen", "bsl1k-person"):
        export_model(checkpoint, labels, PRESETS[name], folder, name)
    with LocalTriton(folder) as local:
        yield local


def run_batch(
    capsys: Capture, triton: LocalTriton, model: str, clips: Path, output: Path, *more: object
) -> CommandResult:
    options = ["--server", triton.address, "--model", model, "--output", output, "--format", "jsonl", "--top-k", 2000]
    done = asl_triton(capsys, "batch", clips, *options, *more)
    assert done.code == 0, done.output
    return done


def read_logits(output: Path) -> dict[str, np.ndarray]:
    """Read the logits (C,) of each clip."""
    found = {}
    for line in (output / "results.jsonl").read_text().splitlines():
        recognition = json.loads(line)
        logits = np.zeros(2000, np.float32)
        for prediction in recognition["predictions"]:
            logits[prediction["class_id"]] = prediction["logit"]
        found[Path(recognition["video"]).stem] = logits
    return found


def test_batch_matches_asl_citizen(
    triton: LocalTriton, shared_folder: Path, people: Mapping[str, np.ndarray], tmp_path: Path, capsys: Capture
) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(shared_folder / "wlasl" / "videos", clips)
    shutil.copytree(shared_folder / "wlasl" / "long", clips / "long")
    run_batch(capsys, triton, "asl-citizen", clips, tmp_path / "out")
    found = read_logits(tmp_path / "out")
    assert sorted(found) == ["07068", "07068x2", "07068x3", "07069"]
    for clip, logits in found.items():
        off = np.abs(logits - people[f"{clip}/asl-citizen/pooled"]).max()
        print(f"{clip}: off by {off:.2g}")
        assert off <= 1e-3


@pytest.mark.parametrize("clip", SIZES)
def test_batch_with_the_official_box_matches_bsl1k(
    triton: LocalTriton,
    shared_folder: Path,
    people: Mapping[str, np.ndarray],
    tmp_path: Path,
    capsys: Capture,
    clip: str,
) -> None:
    path = shared_folder / "wlasl" / "videos" / f"{clip}.mp4"
    x0, y0, x1, y1 = people[f"{clip}/box"] / np.tile(SIZES[clip], 2)
    boxed = run_batch(capsys, triton, "bsl1k-person", path, tmp_path / "out", "--signer", f"{x0},{y0},{x1},{y1}")
    assert "the signer's box is unknown" not in boxed.output
    wanted, logits = people[f"{clip}/bsl1k-person"][0], read_logits(tmp_path / "out")[clip]
    off = np.abs(logits - wanted).max()
    print(f"{clip}: off by {off:.2g} of {np.ptp(wanted):.0f}")  # our crops are rounded to bytes, unlike the authors'
    assert off <= 0.01 * np.ptp(wanted) and logits.argmax() == wanted.argmax()
    whole = run_batch(capsys, triton, "bsl1k-person", path, tmp_path / "whole", "--signer", "off")
    assert "the signer's box is unknown" in whole.output
    off_whole = np.abs(read_logits(tmp_path / "whole")[clip] - wanted).max()
    assert off_whole > 10 * off
    found = run_batch(capsys, triton, "bsl1k-person", path, tmp_path / "found")  # found by the face detector
    assert "no signer was found" not in found.output
    assert np.abs(read_logits(tmp_path / "found")[clip] - wanted).max() < off_whole
