"""A model that answers in a millisecond, or slowly on request, for tests of everything around it."""

from pathlib import Path

import torch
from google.protobuf import text_format
from torch import Tensor, nn
from torch.nn import functional as F
from tritonclient.grpc import model_config_pb2

from asl_triton.presets import PRESETS
from asl_triton_export.exporter import export_script
from asl_triton_export.formats.custom_script import load_script
from tests.networks import GLOSSES

SLOW = """

import time

_execute = TritonPythonModel.execute


def execute(self, requests):
    frames = [torch.from_dlpack(pb_utils.get_input_tensor_by_name(r, self.input).to_dlpack()) for r in requests]
    is_white = any(tensor.float().mean() > 200 for tensor in frames)
    time.sleep({white_s} if is_white else {other_s})
    return _execute(self, requests)


TritonPythonModel.execute = execute
"""


class QuickNetwork(nn.Module):
    """Computes logits from a few pixels, with the signature that asl-triton documents."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(588, len(GLOSSES))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = frames[:, :, ::16, ::16].flatten(2).float() / 255 - 0.5  # (N, T, H, W, C) -> (N, T, 588)
        steps = max((frames.size(1) + 7) // 8 - 1, 1)
        step_logits = self.classifier(F.adaptive_avg_pool1d(pixels.transpose(1, 2), steps).transpose(1, 2))
        return step_logits.amax(dim=1), step_logits, pixels.mean(dim=1)


def export_quick(
    repository: Path,
    name: str,
    *,
    seed: int = 0,
    white_s: float = 0.0,
    other_s: float = 0.0,
    instances: int = 1,
    max_queue_size: int | None = None,
) -> None:
    """Export the network as a model that takes `white_s` seconds for a white clip and `other_s` for any other.

    Each `seed` gives another checkpoint. The model rejects requests beyond `max_queue_size`.
    """
    torch.manual_seed(seed)
    network = QuickNetwork().eval()
    nn.init.normal_(network.classifier.weight, std=0.5)
    repository.mkdir(parents=True, exist_ok=True)
    file = repository.parent / f"{name}-{seed}.pt"
    torch.jit.script(network).save(file)
    preset = PRESETS["wlasl"]
    with load_script(file, len(GLOSSES), preset) as script:
        export_script(script, GLOSSES, preset, repository, name, instances=instances)
    if white_s or other_s:
        with (repository / name / "1" / "model.py").open("a") as code:
            code.write(SLOW.format(white_s=white_s, other_s=other_s))
    if max_queue_size is not None:
        path = repository / name / "configs" / "wheel.pbtxt"
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        config.dynamic_batching.default_queue_policy.max_queue_size = max_queue_size
        path.write_text(text_format.MessageToString(config))
