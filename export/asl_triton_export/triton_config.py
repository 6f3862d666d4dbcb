"""Builds a model's Triton config: tensors, queue, warm-up, and what identifies its checkpoint."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.transport.base import Array
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import normalize

Format = Literal["torchscript", "openvino"]

# Triton's OpenVINO backend accepts only one batch size, and batches are not faster on a CPU.
MAX_BATCH_SIZE = {"torchscript": 8, "openvino": 1}
WARMUP_FRAMES = 64
MAX_QUEUE_SIZE = 256  # requests; Triton rejects more
QUEUE_TIMEOUT_US = 60_000_000
QUEUE_DELAY_US = 1_000
PRIORITY_LEVELS = 2  # 1: somebody is waiting for the answer; 2: bulk work, such as `asl-triton batch`
DEFAULT_PRIORITY = 1


@dataclass(frozen=True)
class ServedNetwork:
    """The facts about a network that go into its config."""

    name: str
    num_classes: int
    num_features: int
    preset: Preset
    precision: str
    input_type: str  # "uint8": RGB bytes (T, 224, 224, 3); "fp32": normalized (3, T, 224, 224)
    checkpoint_sha256: str
    instances: int = 1  # how many forwards may run at once, on each GPU or on the CPU
    served_as: Format = "torchscript"
    card: ModelCard = EMPTY_CARD

    @property
    def container_backend(self) -> str:
        """The Triton backend that serves the network in NVIDIA's container."""
        if self.served_as == "torchscript":
            return "pytorch"
        # The OpenVINO backend computes in bfloat16 if the processor supports it, and has no option against that.
        return "python" if self.precision == "fp32" else "openvino"

    def tensor(self, frames_thwc: Image) -> Array:
        """Convert uint8 RGB crops (T, 224, 224, 3) to the network's input, with a batch axis."""
        return (frames_thwc if self.input_type == "uint8" else normalize(frames_thwc, self.preset))[None]


def build_config(network: ServedNetwork, backend: str, *, on_gpus: bool = True) -> pb.ModelConfig:
    """Build the config for a backend: `network.container_backend`, or "python" for Triton's wheel.

    Without `on_gpus`, the config of the PyTorch backend is for machines that have no GPU.
    """
    size = INPUT_SIZE
    is_uint8 = network.input_type == "uint8"
    max_batch_size = MAX_BATCH_SIZE[network.served_as]
    data_type = pb.TYPE_UINT8 if is_uint8 else pb.TYPE_FP32
    dims = [-1, size, size, 3] if is_uint8 else [3, -1, size, size]
    warmup_dims = [WARMUP_FRAMES if dim == -1 else dim for dim in dims]
    queue = pb.ModelQueuePolicy(
        timeout_action=pb.ModelQueuePolicy.REJECT,
        default_timeout_microseconds=QUEUE_TIMEOUT_US,
        allow_timeout_override=True,
        max_queue_size=MAX_QUEUE_SIZE,
    )
    config = pb.ModelConfig(
        name=network.name,
        backend=backend,
        max_batch_size=max_batch_size,
        input=[pb.ModelInput(name="FRAMES__0", data_type=data_type, dims=dims)],
        output=[
            pb.ModelOutput(
                name="LOGITS__0", data_type=pb.TYPE_FP32, dims=[network.num_classes], label_filename="labels.txt"
            ),
            pb.ModelOutput(name="STEP_LOGITS__1", data_type=pb.TYPE_FP32, dims=[-1, network.num_classes]),
            pb.ModelOutput(name="FEATURES__2", data_type=pb.TYPE_FP32, dims=[network.num_features]),
        ],
        instance_group=[pb.ModelInstanceGroup(count=network.instances, kind=choose_instance_kind(network))],
        dynamic_batching=pb.ModelDynamicBatching(
            max_queue_delay_microseconds=QUEUE_DELAY_US,
            priority_levels=PRIORITY_LEVELS,
            default_priority_level=DEFAULT_PRIORITY,
            default_queue_policy=queue,
        ),
        model_warmup=[
            pb.ModelWarmup(
                name=f"batch-{batch_size}",
                batch_size=batch_size,
                inputs={"FRAMES__0": pb.ModelWarmup.Input(data_type=data_type, dims=warmup_dims, zero_data=True)},
            )
            # On a GPU each batch size has its own plans and memory. On a CPU only the first call is slow.
            for batch_size in range(1, max_batch_size + 1 if backend == "pytorch" and on_gpus else 2)
        ],
    )
    for key, value in (describe_network(network) | choose_backend_parameters(network, backend)).items():
        config.parameters[key].string_value = value
    return config


def choose_instance_kind(network: ServedNetwork) -> pb.ModelInstanceGroup.Kind:
    """Return KIND_AUTO, which uses GPUs if there are any, or KIND_CPU for OpenVINO, which runs on CPUs only."""
    return pb.ModelInstanceGroup.KIND_CPU if network.served_as == "openvino" else pb.ModelInstanceGroup.KIND_AUTO


def describe_network(network: ServedNetwork) -> dict[str, str]:
    """Return the parameters that clients and people read."""
    exporter = f"asl-triton {version('asl-triton')}, torch {torch.__version__}"
    if network.served_as == "openvino":
        exporter += f", openvino {version('openvino')}"
    return {
        "asl_triton.preset": network.preset.to_json(),
        "asl_triton.checkpoint_sha256": network.checkpoint_sha256,
        "asl_triton.precision": network.precision,
        "asl_triton.exporter": exporter,
        **network.card.to_parameters(),
    }


def choose_backend_parameters(network: ServedNetwork, backend: str) -> dict[str, str]:
    """Return the parameters that a backend reads, named as in its documentation."""
    if backend == "pytorch":
        # Optimized execution would compile again for each clip length.
        return {"INFERENCE_MODE": "true", "DISABLE_OPTIMIZED_EXECUTION": "true"}
    if backend == "openvino":
        # Each stream serves one instance with its share of the cores.
        streams = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": str(network.instances)}
        return streams | ({"HINT_BF16": "YES"} if network.precision == "bf16" else {})
    return {}


def write_config(config: pb.ModelConfig, path: Path) -> None:
    """Write a config in protobuf's text format, which Triton reads."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")
