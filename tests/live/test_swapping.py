"""Several models at once, one of them a TorchScript network that is not I3D."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from asl_triton.cli.app import app
from asl_triton.presets import Preset
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import crop_frames
from asl_triton.video.reader import open_video
from asl_triton.video.windows import cut_windows
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.command_line import asl_triton
from tests.live.conftest import write_clip
from tests.local_triton import serve
from tests.networks import GLOSSES, save_labels

SIGNS = ("cat", "dog", "horse")
PRESET = Preset(name="r2plus1d", square=256, value_range=(0.0, 1.0), score="softmax", step_pooling="mean")


class Block(nn.Module):
    """A residual block of two (2+1)D convolutions: over space, then over time."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c, s in ((channels_in, stride), (channels, 1)):
            layers += [
                nn.Conv3d(c, channels, (1, 3, 3), (1, s, s), (0, 1, 1), bias=False),
                nn.BatchNorm3d(channels),
                nn.ReLU(),
                nn.Conv3d(channels, channels, (3, 1, 1), (s, 1, 1), (1, 0, 0), bias=False),
                nn.BatchNorm3d(channels),
                nn.ReLU(),
            ]
        self.path = nn.Sequential(*layers)
        self.shortcut = nn.Conv3d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


class R2Plus1D(nn.Module):
    """A small R(2+1)D (Tran et al. 2018, arXiv:1711.11248) with the signature that asl-triton documents."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, (1, 7, 7), (1, 4, 4), (0, 3, 3))
        self.blocks = nn.Sequential(Block(8, 8, 2), Block(8, 16, 2), Block(16, 24, 2))
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = frames.permute(0, 4, 1, 2, 3).float() / 255 - 0.45  # (N, T, H, W, C) -> (N, C, T, H, W)
        positions = self.blocks(F.relu(self.stem(x))).mean(dim=(3, 4))  # (N, 24, T/8)
        steps = max((frames.size(1) + 7) // 8 - 1, 1)
        step_logits = self.classifier(F.adaptive_avg_pool1d(positions, steps).transpose(1, 2))  # (N, S, C)
        return step_logits.mean(dim=1), step_logits, positions.mean(dim=2)


@pytest.fixture(scope="module")
def network() -> R2Plus1D:
    torch.manual_seed(0)
    net = R2Plus1D(len(SIGNS))
    nn.init.normal_(net.classifier.weight, std=3.0)
    return net.eval()


@pytest.fixture(scope="module")
def triton(
    network: R2Plus1D, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalTriton]:
    """Serve an I3D, and the R(2+1)D as exported by `asl-triton export --torchscript`."""
    folder = tmp_path_factory.mktemp("swapping")
    torch.jit.script(network).save(folder / "r2plus1d.pt")
    save_labels(folder / "labels.txt", SIGNS)
    (folder / "preset.json").write_text(PRESET.to_json())
    repository = folder / "models"
    export_model(load_checkpoint(small_checkpoint), GLOSSES, Preset(name="any", square=256), repository, "i3d")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        files = ["--torchscript", "r2plus1d.pt", "--labels", "labels.txt", "--preset", "preset.json"]
        export(*files, "--repository", repository)
    with serve(repository) as served:
        yield served


def export(*arguments: object) -> None:
    """Run `asl-triton export` in a fixture, which has no capsys."""
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert done.exit_code == 0, done.output


def test_network_other_than_i3d_works(triton: LocalTriton, network: R2Plus1D, tmp_path: Path) -> None:
    for num_frames in (9, 24, 41):
        clip = write_clip(tmp_path / f"{num_frames}.mp4", num_frames, seed=num_frames)
        with Recognizer(triton.address, model="r2plus1d") as recognizer:
            recognition = recognizer.recognize(clip)
        assert sorted(p.gloss for p in recognition.predictions) == sorted(SIGNS)
        assert sum(p.confidence for p in recognition.predictions) == pytest.approx(1)
        with torch.inference_mode():
            logits = network(torch.from_numpy(crop_clip(clip))[None])[0][0]
        assert recognition.predictions[0].class_id == int(logits.argmax())
        for prediction in recognition.predictions:
            assert prediction.logit == pytest.approx(float(logits[prediction.class_id]), abs=1e-3)


def crop_clip(clip: Path) -> Image:
    """Crop a clip as the client does."""
    with open_video(clip) as video:
        return next(cut_windows((c.image for c in crop_frames(video, PRESET, 1000)), PRESET)).frames


def test_several_models_are_served_at_once(
    triton: LocalTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 24)
    with Recognizer(triton.address, model="i3d") as recognizer:
        assert recognizer.recognize(clip).gloss in GLOSSES
    listed = asl_triton(capsys, "models", "--server", triton.address, "--json")
    assert '"i3d"' in listed.out and '"r2plus1d"' in listed.out


def test_doctor_passes_for_the_script(triton: LocalTriton, capsys: pytest.CaptureFixture[str]) -> None:
    checked = asl_triton(
        capsys, "doctor", "--server", triton.address, "--model", "r2plus1d", "--repository", triton.repository
    )
    assert checked.code == 0, checked.output
