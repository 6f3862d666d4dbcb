"""Real Tritons with small networks, each started once per session."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from asl_triton.models.recognize_sign import SIGN_MODELS
from asl_triton.presets import PRESETS
from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.model_layout import find_shipped_models
from asl_triton_deploy.ports import claim_ports
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import fastest_precision
from tests.exports import copy_model, export_shared, load_demo
from tests.live.quick_network import export_quick
from tests.local_triton import serve
from tests.networks import GLOSSES, save_checkpoint

STRICT = {"max_frames": 250, "max_pixels": 25_000_000, "max_decode_s": 1, "max_memory_bytes": 144 * 2**20}
FOREIGN_CODE = """
import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer() for _ in requests]

    def answer(self):
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("SUM__0", torch.zeros(1))])
"""
FOREIGN_CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "FRAMES__0", data_type: TYPE_UINT8, dims: [-1] }]
output [{ name: "SUM__0", data_type: TYPE_FP32, dims: [1] }]
instance_group [{ kind: KIND_CPU }]
"""


def write_clip(path: Path, num_frames: int = 24, size: tuple[int, int] = (240, 320), seed: int = 0) -> Path:
    """Write a video of moving blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (size[1], size[0]))
    coarse = random.integers(0, 256, (num_frames // 8 + 2, 6, 8, 3)).astype(np.float32)
    for t in range(num_frames):
        mix = (t % 8) / 8
        image = coarse[t // 8] * (1 - mix) + coarse[t // 8 + 1] * mix
        writer.write(cv2.resize(image, (size[1], size[0])).astype(np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "small.pt")


@pytest.fixture(scope="session")
def small_repository(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export one model of seven glosses, `small`."""
    folder = tmp_path_factory.mktemp("small")
    checkpoint = load_checkpoint(small_checkpoint)
    export_shared(tmp_path_factory, checkpoint, GLOSSES, PRESETS["wlasl"], folder, "small")
    return folder


@pytest.fixture(scope="session")
def small_triton(small_repository: Path) -> Iterator[LocalTriton]:
    with serve(small_repository) as triton:
        yield triton


@pytest.fixture(scope="session")
def quick_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve a network that answers in a millisecond, and the models that take whole videos."""
    folder = tmp_path_factory.mktemp("quick") / "models"
    export_quick(folder, "quick")
    with serve(folder, recognize_sign=True) as triton:
        yield triton


@pytest.fixture(scope="session")
def mixed_repository(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export three models, one with the classic input, and add one that is not an asl-triton model."""
    folder = tmp_path_factory.mktemp("mixed")
    checkpoint = load_checkpoint(small_checkpoint)
    export = partial(export_shared, tmp_path_factory, checkpoint, GLOSSES)
    export(PRESETS["wlasl"], folder, "first")
    export(PRESETS["bsl1k"], folder, "second", precision="bf16")
    export(PRESETS["wlasl"], folder, "classic", input_type="fp32")
    write_stranger(folder, "stranger")
    return folder


def write_stranger(repository: Path, name: str, config: str = FOREIGN_CONFIG, code: str = FOREIGN_CODE) -> None:
    """Write a model that is not an asl-triton model."""
    folder = repository / name
    (folder / "configs").mkdir(parents=True)
    (folder / "1").mkdir()
    (folder / "1" / "model.pt").touch()
    (folder / "1" / "model.py").write_text(code)
    for path in (folder / "config.pbtxt", folder / "configs" / "wheel.pbtxt"):
        path.write_text(f'name: "{name}"\n{config}')


@pytest.fixture(scope="session")
def mixed_triton(mixed_repository: Path) -> Iterator[LocalTriton]:
    with serve(mixed_repository) as triton:
        yield triton


@pytest.fixture(scope="session")
def preset_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a small network of twenty glosses once per preset, and as `classic` with normalized input."""
    folder = tmp_path_factory.mktemp("presets")
    checkpoint = load_checkpoint(save_checkpoint(folder / "weights.pt", num_classes=20))
    labels = tuple(f"gloss {number}" for number in range(20))
    export = partial(export_shared, tmp_path_factory, checkpoint, labels, PRESETS["wlasl"], folder)
    export("wlasl")
    export("classic", input_type="fp32")
    for name in PRESETS.keys() - {"wlasl"}:
        copy_model(folder / "wlasl", folder / name, PRESETS[name])
    return folder


@pytest.fixture(scope="session")
def preset_triton(preset_repository: Path) -> Iterator[LocalTriton]:
    """Serve all presets, and the models that take whole videos."""
    with serve(preset_repository, recognize_sign=True) as triton:
        yield triton


@pytest.fixture(scope="session")
def strict_triton(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve the model `small`, and models that take whole videos, with strict limits."""
    folder = tmp_path_factory.mktemp("strict")
    shutil.copytree(small_repository / "small", folder / "small")
    for name in SIGN_MODELS:
        shutil.copytree(find_shipped_models() / name, folder / name)
        path = folder / name / "config.pbtxt"
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for limit, value in STRICT.items():
            config.parameters[f"asl_triton.{limit}"].string_value = str(value)
        config.dynamic_batching.default_queue_policy.max_queue_size = 12
        path.write_text(text_format.MessageToString(config))
    with serve(folder, recognize_sign=True) as triton:
        yield triton


@pytest.fixture(scope="session")
def demo_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve the demo checkpoint, and the models that take whole videos."""
    folder = tmp_path_factory.mktemp("demo")
    export_shared(tmp_path_factory, *load_demo(), PRESETS["wlasl"], folder, "demo")
    with serve(folder, recognize_sign=True) as triton:
        yield triton


@pytest.fixture(scope="session")
def fast_demo_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve the demo checkpoint at its fastest precision, on a port that survives a restart."""
    folder = tmp_path_factory.mktemp("fast-demo")
    export_shared(tmp_path_factory, *load_demo(), PRESETS["wlasl"], folder, "demo", precision=fastest_precision())
    (port,) = claim_ports("127.0.0.1", {"gRPC": None}).values()
    with serve(folder, grpc_port=port) as triton:
        yield triton


@pytest.fixture(scope="session")
def reference_triton(
    reference_checkpoint: Path, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalTriton]:
    """Serve the reference checkpoint as exported by `asl-triton export`, and the models that take whole videos."""
    folder = tmp_path_factory.mktemp("reference")
    labels = shared_folder / "wlasl" / "wlasl_class_list.txt"
    words = [reference_checkpoint, "--labels", labels, "--name", "i3d_reference", "--repository", folder]
    command = [sys.executable, "-m", "asl_triton", "export", *map(str, words)]
    exported = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert exported.returncode == 0, exported.stderr
    with serve(folder, recognize_sign=True) as triton:
        yield triton


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Return a folder of three clips, one of them in a subfolder."""
    folder = tmp_path / "clips"
    for number, name in enumerate(("a.mp4", "b.mp4", "deeper/c.mp4")):
        write_clip(folder / name, num_frames=20 + 7 * number, seed=number)
    return folder
