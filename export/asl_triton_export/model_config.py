"""Triton's config of a recogniser: the tensors, the queue, the warm-up, and what the checkpoint is."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from asl_triton.presets import INPUT_SIZE, Preset

MAX_BATCH_SIZE = 8
WARMUP_FRAMES = 64
# On a GPU each batch size has its own plans and memory; a CPU only has its first call to get over.
WARMUP_BATCH_SIZES = {"pytorch": range(1, MAX_BATCH_SIZE + 1), "python": range(1, 2)}
MAX_QUEUE_SIZE = 256  # requests; one more is refused
QUEUE_TIMEOUT_US = 60_000_000
QUEUE_DELAY_US = 1_000
PRIORITY_LEVELS = 2  # 1: somebody waits for the answer; 2: bulk work, as `asl-triton batch` asks
DEFAULT_PRIORITY = 1


@dataclass(frozen=True)
class ServedNetwork:
    """What a config says of the network behind it."""

    name: str
    num_classes: int
    num_features: int
    preset: Preset
    precision: str
    input_type: str  # "uint8": RGB bytes (T, 224, 224, 3); "fp32": normalised (3, T, 224, 224)
    checkpoint_sha256: str


def model_config(network: ServedNetwork, backend: str) -> pb.ModelConfig:
    """The config for NVIDIA's container (`backend` "pytorch") or for Triton's wheel ("python")."""
    size = INPUT_SIZE
    is_uint8 = network.input_type == "uint8"
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
        max_batch_size=MAX_BATCH_SIZE,
        input=[pb.ModelInput(name="FRAMES__0", data_type=data_type, dims=dims)],
        output=[
            pb.ModelOutput(
                name="LOGITS__0", data_type=pb.TYPE_FP32, dims=[network.num_classes], label_filename="labels.txt"
            ),
            pb.ModelOutput(name="STEP_LOGITS__1", data_type=pb.TYPE_FP32, dims=[-1, network.num_classes]),
            pb.ModelOutput(name="FEATURES__2", data_type=pb.TYPE_FP32, dims=[network.num_features]),
        ],
        instance_group=[pb.ModelInstanceGroup(count=1)],  # on a GPU where there is one
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
            for batch_size in WARMUP_BATCH_SIZES[backend]
        ],
    )
    parameters = {
        "asl_triton.preset": network.preset.to_json(),
        "asl_triton.checkpoint_sha256": network.checkpoint_sha256,
        "asl_triton.precision": network.precision,
        "asl_triton.exporter": f"asl-triton {version('asl-triton')}, torch {torch.__version__}",
    }
    if backend == "pytorch":
        parameters["INFERENCE_MODE"] = "true"
        parameters["DISABLE_OPTIMIZED_EXECUTION"] = "true"  # it would compile anew for each length of clip
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def write_config(config: pb.ModelConfig, path: Path) -> None:
    """Write a config in protobuf's text format, as Triton reads it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")
