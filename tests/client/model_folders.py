"""Model folders as an export writes them, but without a network, and a fake server of stand-in networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from asl_triton.errors import ServerError
from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton.models.golden import GoldenAnswer, render_golden
from asl_triton.presets import PRESETS, Preset
from asl_triton.transport.base import Array

GLOSSES = ("book", "drink", "hello", "help", "home", "mother")


@dataclass(frozen=True)
class Network:
    """A stand-in for a network: its logits are linear in the mean colors of a clip. The seed chooses the weights."""

    seed: int = 0
    num_classes: int = len(GLOSSES)

    def logits(self, frames: Array) -> Array:
        """Return logits (N, C) of clips (N, T, 224, 224, 3)."""
        weights = np.random.default_rng(self.seed).normal(size=(4, self.num_classes))
        means = frames.mean(axis=(1, 2, 3)) / 64  # (N, 3)
        return (np.concatenate([means, np.ones((len(means), 1))], axis=1) @ weights).astype(np.float32)


def write_folder(
    repository: Path,
    name: str,
    network: Network | None = None,
    labels: Sequence[str] = GLOSSES,
    preset: Preset = PRESETS["wlasl"],
    *,
    card: ModelCard = EMPTY_CARD,
    golden: bool = True,
) -> Path:
    """Write or replace the folder of a model, and return its path."""
    network = network or Network()
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    frames = pb.ModelInput(name="FRAMES__0", data_type=pb.TYPE_UINT8, dims=[-1, 224, 224, 3])
    outputs = {"LOGITS__0": [len(labels)], "STEP_LOGITS__1": [-1, len(labels)], "FEATURES__2": [8]}
    config = pb.ModelConfig(
        name=name,
        backend="pytorch",
        max_batch_size=8,
        input=[frames],
        output=[pb.ModelOutput(name=key, data_type=pb.TYPE_FP32, dims=dims) for key, dims in outputs.items()],
    )
    for key, value in {"asl_triton.preset": preset.to_json(), **card.to_parameters()}.items():
        config.parameters[key].string_value = value
    replace_file(folder / "config.pbtxt", text_format.MessageToString(config))
    replace_file(folder / "labels.txt", "\n".join(labels))
    if golden:
        logits = network.logits(render_golden()[None])[0]
        GoldenAnswer(logits, logits, 32, 1e-3).save(folder / "golden.npz")
    return folder


def replace_file(path: Path, text: str) -> None:
    """Replace a file with a new one, so that its inode changes as it does when a folder is replaced."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


@dataclass
class FakeTriton:
    """Triton as seen from a Python backend. `asked` lists the model of each request."""

    networks: dict[str, Network]
    address: str = "this server"
    asked: list[str] = field(default_factory=list)

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        self.asked.append(model)
        if model not in self.networks:
            raise ServerError(f"{model} gave no answer: it is not ready")
        return {"LOGITS__0": self.networks[model].logits(inputs["FRAMES__0"])}

    async def is_ready(self, model: str) -> bool:
        return model in self.networks
