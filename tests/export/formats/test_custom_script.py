"""`asl-triton export --torchscript` accepts any network with the right signature, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asl_triton.models.golden import GoldenAnswer, render_golden
from asl_triton.presets import PRESETS
from tests.command_line import asl_triton
from tests.exports import find_local_paths
from tests.networks import GLOSSES, save_checkpoint, save_labels

Capture = pytest.CaptureFixture[str]


class Means(nn.Module):
    """The smallest network with the signature: a classifier of the mean colors of 8-frame steps."""

    def __init__(self, num_classes: int = len(GLOSSES)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classifier = nn.Linear(3, num_classes)

    def answer(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = max((frames.size(1) + 7) // 8 - 1, 1)
        colors = frames.float().mean(dim=(2, 3)).transpose(1, 2) / 255  # (N, T, H, W, C) -> (N, C, T)
        features = nn.functional.adaptive_avg_pool1d(colors, steps).transpose(1, 2)
        step_logits = self.classifier(features)
        return step_logits.amax(dim=1), step_logits, features.mean(dim=1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.answer(frames)


class OneAnswer(Means):
    def forward(self, frames: Tensor) -> Tensor:  # type: ignore[override]
        return self.classifier(frames.float().mean(dim=(1, 2, 3)))


class TwoAnswers(Means):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.classifier(frames.float().mean(dim=(1, 2, 3)))
        return logits, logits


class Half(Means):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, step_logits, features = self.answer(frames)
        return logits.half(), step_logits, features


class StepsLast(Means):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, step_logits, features = self.answer(frames)
        return logits, step_logits.transpose(1, 2), features


class Infinite(Means):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, step_logits, features = self.answer(frames)
        return logits / 0.0, step_logits, features


class Untyped(Means):
    def forward(self, frames: Tensor) -> Any:  # type: ignore[override]
        return self.answer(frames)


class LongClips(Means):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if frames.size(1) < 16:
            raise ValueError("I want 16 frames")
        return self.answer(frames)


class DependsOnBatchSize(Means):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, step_logits, features = self.answer(frames)
        return logits * frames.size(0) * 100, step_logits, features


class Channels(Means):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = nn.functional.conv2d(frames[:, 0].float(), self.classifier.weight[:, :, None, None])
        return maps.mean(dim=(2, 3)), self.answer(frames)[1], self.answer(frames)[2]


def save_script(path: Path, net: nn.Module | None = None) -> Path:
    torch.jit.script((net or Means()).eval()).save(path)
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with labels."""
    monkeypatch.chdir(tmp_path)
    save_labels(tmp_path / "labels.txt")
    return tmp_path


def test_script_becomes_a_complete_model_folder(files: Path, capsys: Capture) -> None:
    save_script(files / "means.pt")
    (files / "preset.json").write_text(PRESETS["bsl1k"].to_json())
    options = ["--labels", "labels.txt", "--preset", "preset.json", "--repository", "models"]
    done = asl_triton(capsys, "export", "--torchscript", "means.pt", *options)
    assert done.code == 0, done.output
    assert "means: 7 glosses, fp32" in done.out
    folder = files / "models" / "means"
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert written == {
        "config.pbtxt", "configs/cpu.pbtxt", "configs/wheel.pbtxt", "labels.txt", "golden.npz",
        "1/model.pt", "1/model.py",
    }  # fmt: skip
    assert "bsl1k" in (folder / "config.pbtxt").read_text()
    assert find_local_paths(files / "means.pt") and find_local_paths(folder / "1" / "model.pt") == []
    golden = GoldenAnswer.load(folder / "golden.npz")
    with torch.inference_mode():
        logits = torch.jit.load(folder / "1" / "model.pt")(torch.from_numpy(render_golden(golden.num_frames))[None])[0]
    assert np.allclose(logits[0].numpy(), golden.served_logits)


@pytest.mark.parametrize(("net", "says"), [
    (OneAnswer, "returns a Tensor instead of the tuple (logits, step_logits, features)"),
    (TwoAnswers, "returns 2 values"),
    (Half, "logits as float16 [1, 7] instead of float32 [1, 7]"),
    (StepsLast, "step_logits as float32 [1, 7, 3] instead of float32 [1, 3, 7]"),
    (Infinite, "logits that are not finite"),
    (LongClips, "with input uint8 [1, 9, 224, 224, 3], fails (I want 16 frames)"),
    (Untyped, "does not declare its return type: use tuple[torch.Tensor, torch.Tensor, torch.Tensor]"),
    (DependsOnBatchSize, "gives different logits for the same clip by itself and in a batch"),
    (lambda: Means(5), "5 classes, but there are 7 labels"),
])  # fmt: skip
def test_script_with_a_wrong_signature_is_refused(
    files: Path, capsys: Capture, net: Callable[[], nn.Module], says: str
) -> None:
    save_script(files / "net.pt", net())
    options = ["--labels", "labels.txt", "--preset", "wlasl", "--repository", "models"]
    done = asl_triton(capsys, "export", "--torchscript", "net.pt", *options)
    assert done.code == 1
    assert says in done.output
    assert not (files / "models" / "net").exists()


def test_failing_operation_is_reported_by_its_last_line(files: Path, capsys: Capture) -> None:
    save_script(files / "net.pt", Channels())
    done = asl_triton(capsys, "export", "--torchscript", "net.pt", "--labels", "labels.txt", "--preset", "wlasl")
    assert done.code == 1
    assert "expected input[1, 224, 224, 3] to have 3 channels" in done.output
    assert len(done.output) < 500


def test_network_traced_at_one_length_is_refused(files: Path, capsys: Capture) -> None:
    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(Means().eval(), torch.zeros(1, 32, 224, 224, 3, dtype=torch.uint8))
    traced.save(files / "net.pt")
    done = asl_triton(capsys, "export", "--torchscript", "net.pt", "--labels", "labels.txt", "--preset", "wlasl")
    assert done.code == 1
    assert "step_logits as float32 [1, 3, 7] instead of float32 [1, 1, 7]" in done.output


@pytest.mark.parametrize(("arguments", "says", "code"), [
    (["--torchscript", "means.pt"], "give --labels", 1),
    (["--torchscript", "means.pt", "--labels", "labels.txt"], "and --preset", 1),
    (["--torchscript", "labels.txt", "--labels", "labels.txt", "--preset", "wlasl"], "is not a TorchScript file", 1),
    (["--torchscript", "weights.pt", "--labels", "labels.txt", "--preset", "wlasl"], "is not a TorchScript file", 1),
    (["--torchscript", "nowhere.pt", "--labels", "labels.txt", "--preset", "wlasl"], "cannot find TorchScript file", 1),
    (["--torchscript", "means.pt", "--precision", "fp16"], "--precision is only for checkpoints", 1),
    (["weights.pt", "--torchscript", "means.pt"], "not both", 2),
    ([], "Missing argument", 2),
])  # fmt: skip
def test_bad_input_is_reported_with_an_exit_code(
    files: Path, capsys: Capture, arguments: list[str], says: str, code: int
) -> None:
    save_script(files / "means.pt")
    save_checkpoint(files / "weights.pt")
    done = asl_triton(capsys, "export", *arguments)
    assert done.code == code
    assert says in done.output
    assert not (files / "model_repository").exists()
