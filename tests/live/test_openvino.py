"""Models for CPUs in a real Triton: float32 for every length, and the demo checkpoint in int8."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from asl_triton.errors import AslTritonError, ServerError
from asl_triton.models.served import FEATURES, FRAMES, LOGITS, STEP_LOGITS
from asl_triton.presets import PRESETS
from asl_triton.recognizer.event_loop import run
from asl_triton.transport.base import Array
from asl_triton.transport.factory import make_transport
from asl_triton_demo.signer import render, write_video
from asl_triton_demo.signs import SIGNS
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from asl_triton_export.i3d import normalize, pool_steps
from tests.command_line import asl_triton
from tests.local_triton import serve
from tests.networks import GLOSSES, build_small_network

Capture = pytest.CaptureFixture[str]
FIRST_SEED = 70_000  # signers in neither the training clips nor the held-out ones


@dataclass(frozen=True)
class Quantized:
    """The repository that `export --precision int8` wrote, and its output."""

    repository: Path
    printed: str


@pytest.fixture(scope="module")
def gloss_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render two clips of each of twelve demo signs."""
    folder = tmp_path_factory.mktemp("glosses")
    for index, sign in enumerate(SIGNS[:12]):
        (folder / sign.gloss).mkdir()
        for take in range(2):
            write_video(render(sign, FIRST_SEED + 2 * index + take), folder / sign.gloss / f"{take}.avi")
    return folder


@pytest.fixture(scope="module")
def quantized(gloss_folders: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Export `demo` in int8 and `small` in float32."""
    repository = tmp_path_factory.mktemp("openvino") / "models"
    command = [sys.executable, "-m", "asl_triton", "export", "demo", "--repository", str(repository)]
    command += ["--format", "openvino", "--precision", "int8", "--calibrate", str(gloss_folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    checkpoint = load_checkpoint(small_checkpoint)
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], repository, "small", served_as="openvino")
    return Quantized(repository, " ".join(done.stdout.split()))


@pytest.fixture(scope="module")
def triton(quantized: Quantized) -> Iterator[LocalTriton]:
    with serve(quantized.repository) as triton:
        yield triton


def test_export_reports_the_accuracy_of_int8(quantized: Quantized) -> None:
    pattern = r"with 12 clips, [\d,]+ frames\. On 12 other clips, the best gloss .* for (\d+) of 12"
    match = re.search(pattern, quantized.printed)
    assert match is not None, quantized.printed
    assert int(match[1]) >= 11
    accuracies = re.search(r"Top-1 is ([\d.]+)% in int8 and ([\d.]+)% in float32", quantized.printed)
    assert accuracies is not None, quantized.printed
    assert min(map(float, accuracies.groups())) > 90
    assert "Statistics" not in quantized.printed  # NNCF's progress output


def test_int8_still_recognizes(triton: LocalTriton, gloss_folders: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [gloss_folders, "--server", triton.address, "--model", "demo", "--output", tmp_path]
    done = asl_triton(capsys, "evaluate", *arguments)
    assert done.code == 0, done.output
    measured = json.loads((tmp_path / "evaluation.json").read_text())
    ranks = [answer["rank"] for answer in measured["answers"]]
    assert len(ranks) == 24
    assert ranks.count(1) >= 23


@pytest.mark.parametrize("model", ["demo", "small"])
def test_doctor_finds_the_golden_answer(triton: LocalTriton, quantized: Quantized, model: str, capsys: Capture) -> None:
    arguments = ["--server", triton.address, "--model", model, "--repository", quantized.repository]
    done = asl_triton(capsys, "doctor", *arguments)
    assert done.code == 0, done.output
    assert f"{model}: golden answer: logits differ by" in done.output
    assert "openvino" in done.output


def infer_small(triton: LocalTriton, frames: Array) -> dict[str, Array]:
    """Send frames to `small`, which is served in float32."""
    transport = make_transport(triton.address)

    async def infer_and_close() -> dict[str, Array]:
        try:
            return dict(await transport.infer("small", {FRAMES: frames}, [LOGITS, STEP_LOGITS, FEATURES]))
        finally:
            await transport.close()

    return run(infer_and_close())


def test_every_length_is_served_as_trained(triton: LocalTriton) -> None:
    net, preset = build_small_network(), PRESETS["wlasl"]
    random = np.random.default_rng(0)
    for num_frames in (9, 10, 17, 33, 64, 70, 9, 150):  # longer and shorter, because shapes are dynamic
        frames = random.integers(0, 256, (num_frames, 224, 224, 3), np.uint8)
        with torch.inference_mode():
            trained = net(normalize(torch.from_numpy(frames)[None], preset))
            logits = pool_steps(net, trained.step_logits, trained.features, preset)
        answer = infer_small(triton, frames[None])
        assert np.abs(answer[LOGITS] - logits.numpy()).max() < 1e-4
        assert np.abs(answer[STEP_LOGITS] - trained.step_logits.numpy()).max() < 1e-4
        assert np.abs(answer[FEATURES] - trained.features.mean(dim=2).numpy()).max() < 1e-4


def test_two_clips_in_one_request_are_refused(triton: LocalTriton) -> None:
    with pytest.raises(AslTritonError, match="batch-size must be <= 1"):
        infer_small(triton, np.zeros((2, 9, 224, 224, 3), np.uint8))


def test_server_without_openvino_names_the_package_to_install(quantized: Quantized, tmp_path: Path) -> None:
    code = quantized.repository / "small" / "1" / "model.py"
    folder = tmp_path / "models" / "small"
    (folder / "1").mkdir(parents=True)
    (folder / "configs").mkdir()
    for name in ("config.pbtxt", "configs/wheel.pbtxt", "labels.txt", "1/model.xml", "1/model.bin"):
        (folder / name).symlink_to(quantized.repository / "small" / name)
    (folder / "1" / "model.py").write_text(f"import sys\nsys.modules['openvino'] = None\n{code.read_text()}")
    with pytest.raises(ServerError, match="pip install openvino"):
        LocalTriton(tmp_path / "models").start()
