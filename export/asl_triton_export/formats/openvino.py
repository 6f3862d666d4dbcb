"""The format `openvino`, for CPUs: I3D as a graph of OpenVINO's operations, in `model.xml` and `model.bin`.

The graph is built operation by operation instead of converted from PyTorch. OpenVINO's convolution and pooling support
TensorFlow's 'same' padding (`same_upper`), so one graph is exact for clips of every length; a converted trace would be
exact only for even or only for odd lengths. As in `torchscript`, BatchNorm and the preset's value range and color order
(`i3d.normalize`) are folded into the convolutions, and the first one gets a fourth channel of zeros. OpenVINO
optimizes the rest when it compiles the graph.
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from asl_triton.models.served import FEATURES, FRAMES, LOGITS, STEP_LOGITS
from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.results import Logits
from asl_triton.transport.base import Array
from asl_triton_export.formats import Forward
from asl_triton_export.formats.torchscript import fold_batch_norm
from asl_triton_export.i3d import I3D, MIXED, Triple
from asl_triton_export.triton_config import ServedNetwork

# Importing OpenVINO or NNCF sends telemetry to their maker, unless this module of theirs cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino import opset8 as ops  # noqa: E402 - from 2022, so that older servers can read it too
from openvino.opset11 import interpolate  # noqa: E402 - from 2023, the first one with this signature

MODEL_FILE = "model.xml"
CLASSIFIER = "classifier"  # the prefix of its operations' names
STEM_CHANNELS = 4  # RGB and one of zeros, which makes the first convolution twice as fast
ANY = -1  # clips, frames
LAST = np.iinfo(np.int64).max


def save_openvino(net: I3D, network: ServedNetwork, folder: Path) -> None:
    """Write `model.xml` and `model.bin` into a version folder in float32. Compiling chooses bf16."""
    save_graph(build_served_graph(net, network), folder)


def open_openvino(folder: Path, precision: str) -> Forward:
    """Compile the graph of a version folder for this machine."""
    return make_forward(compile_model(folder / MODEL_FILE, precision))


def compile_float32(net: I3D, network: ServedNetwork) -> Forward:
    """Compile the network in float32 for this machine, to compare a quantized one with."""
    return make_forward(compile_model(build_served_graph(net, network), "fp32"))


def build_served_graph(net: I3D, network: ServedNetwork) -> openvino.Model:
    """Build the graph in float32, with the input type of `network`."""
    return build_graph(net, network.preset, normalized_input=network.input_type == "fp32")


def save_graph(graph: openvino.Model, folder: Path) -> None:
    """Write a graph into a version folder."""
    openvino.save_model(graph, folder / MODEL_FILE, compress_to_fp16=False)


def compile_model(model: openvino.Model | Path, precision: str) -> openvino.CompiledModel:
    """Compile a graph, or a file with one, for this machine's CPU, to run one clip at a time on all cores.

    `precision` is that of `asl-triton export`. bf16 computes in bfloat16 if the processor supports it. OpenVINO would
    do so by default, so every other precision requests float32.
    """
    hint = "bf16" if precision == "bf16" else "f32"
    return get_core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint})


@cache
def get_core() -> openvino.Core:
    """Return the only Core of this process, which is never destroyed.

    The CPU plugin installs a stack for signal handlers and removes it with the Core. With two Cores, destroying the
    second one restores the stack of the first, which is gone, and the next Ctrl-C ends Python with a segmentation fault
    (OpenVINO 2026.4).
    """
    return openvino.Core()


def make_forward(compiled: openvino.CompiledModel) -> Forward:
    """Wrap a compiled graph as a function from frames to logits."""

    def forward(frames: Array) -> Logits:
        logits: Logits = compiled(frames)[LOGITS][0]
        return logits

    return forward


def build_graph(net: I3D, preset: Preset, *, normalized_input: bool = False) -> openvino.Model:
    """Build the served network: FRAMES__0 to LOGITS__0, STEP_LOGITS__1 and FEATURES__2, with the contract's shapes.

    `normalized_input` is as in `torchscript.ServedI3D`. Weights are float32; the computing precision is chosen when the
    graph is compiled.
    """
    frames, x = add_input(preset, normalized_input)
    x = pool(convolution(x, *add_stem(net, preset, normalized_input), stride=2), (1, 3, 3), (1, 2, 2))
    x = convolution(x, *fold_batch_norm(net.Conv3d_2b_1x1))
    x = convolution(x, *fold_batch_norm(net.Conv3d_2c_3x3))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        x = mixed(x, net.get_submodule(name))
    outputs = {name: node.output(0) for name, node in head(x, net, preset).items()}
    for name, output in outputs.items():
        output.get_tensor().set_names({name})
    results = [ops.result(output, name=name) for name, output in outputs.items()]
    return openvino.Model(results, [frames], "I3D")


def add_input(preset: Preset, normalized_input: bool) -> tuple[openvino.Node, openvino.Node]:
    """Build the input, and the stem's input (N, 4, T, H, W), which is 0 for a pixel that normalizes to zero."""
    size = INPUT_SIZE
    if normalized_input:
        frames = x = ops.parameter([ANY, 3, ANY, size, size], openvino.Type.f32, name=FRAMES)
    else:
        frames = ops.parameter([ANY, ANY, size, size, 3], openvino.Type.u8, name=FRAMES)
        x = ops.transpose(frames, shape(0, 4, 1, 2, 3))  # (N, T, H, W, C) -> (N, C, T, H, W)
        low, high = preset.value_range
        x = ops.subtract(ops.convert(x, openvino.Type.f32), np.float32(-low * 255.0 / (high - low)))
    frames.output(0).get_tensor().set_names({FRAMES})
    nothing, after = shape(0, 0, 0, 0, 0), shape(0, STEM_CHANNELS - 3, 0, 0, 0)
    return frames, ops.pad(x, nothing, after, "constant", np.float32(0))


def add_stem(net: I3D, preset: Preset, normalized_input: bool) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the first convolution, for the output of `add_input`."""
    weight, bias = fold_batch_norm(net.Conv3d_1a_7x7)
    if not normalized_input:  # i3d.normalize, folded into the weights
        low, high = preset.value_range
        weight = weight * ((high - low) / 255.0)
        if preset.colour == "BGR":
            weight = weight.flip(1)
    return nn.functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, STEM_CHANNELS - weight.shape[1])), bias


def mixed(x: openvino.Node, block: nn.Module) -> openvino.Node:
    """Add a Mixed block: four parallel branches, concatenated over channels."""

    def unit(x: openvino.Node, name: str) -> openvino.Node:
        return convolution(x, *fold_batch_norm(block.get_submodule(name)))

    branches = [
        unit(x, "b0"),
        unit(unit(x, "b1a"), "b1b"),
        unit(unit(x, "b2a"), "b2b"),
        unit(pool(x, (3, 3, 3), (1, 1, 1)), "b3b"),
    ]
    return ops.concat(branches, axis=1)


def convolution(x: openvino.Node, weight: Tensor, bias: Tensor, stride: int = 1) -> openvino.Node:
    """Add a convolution with a bias and 'same' padding, then ReLU."""
    none, ones = [0, 0, 0], [1, 1, 1]
    x = ops.convolution(x, constant(weight), [stride] * 3, none, none, ones, auto_pad="same_upper")
    return ops.relu(ops.add(x, constant(bias.reshape(1, -1, 1, 1, 1))))


def pool(x: openvino.Node, kernel: Triple, stride: Triple) -> openvino.Node:
    """Add max pooling with 'same' padding by minus infinity, which equals padding by zeros after a ReLU."""
    none, ones = [0, 0, 0], [1, 1, 1]
    return ops.max_pool(x, list(stride), ones, none, none, list(kernel), auto_pad="same_upper").output(0)


def head(x: openvino.Node, net: I3D, preset: Preset) -> dict[str, openvino.Node]:
    """Add the outputs, from the last block's activations (N, F, T/8, 7, 7), and return them by name."""
    positions = ops.transpose(ops.reduce_mean(x, shape(3, 4)), shape(0, 2, 1))  # (N, T/8, F)
    count = ops.gather(ops.shape_of(positions), shape(1), np.int64(0))
    # Each step is the mean of two neighboring positions. A single position is a step by itself.
    one, last = shape(1), ops.subtract(count, shape(1))
    before = ops.slice(positions, shape(0), ops.maximum(last, one), one, axes=one)
    behind = ops.slice(positions, ops.minimum(last, one), shape(LAST), one, axes=one)
    steps = ops.multiply(ops.add(before, behind), np.float32(0.5))
    step_logits = add_classifier(steps, net, "steps")
    features = ops.reduce_mean(positions, shape(1))
    if preset.step_pooling == "max":
        logits = ops.reduce_max(step_logits, shape(1))
    elif preset.step_pooling == "max-interpolated":
        logits = ops.reduce_max(interpolate_steps(step_logits, preset.window_frames), shape(1))
    elif preset.step_pooling == "mean":
        logits = ops.reduce_mean(step_logits, shape(1))
    else:
        logits = add_classifier(features, net, "clip")
    return {LOGITS: logits, STEP_LOGITS: step_logits, FEATURES: features}


def interpolate_steps(steps: openvino.Node, length: int) -> openvino.Node:
    """Interpolate step logits (N, S, C) to (N, length, C), as PyTorch's `F.interpolate(..., mode="linear")` does."""
    return interpolate(
        steps,
        shape(length),
        mode="linear",
        shape_calculation_mode="sizes",
        coordinate_transformation_mode="half_pixel",
        axes=shape(1),
    )


def add_classifier(features: openvino.Node, net: I3D, of: str) -> openvino.Node:
    """Add the classifier, from features (..., F) to logits (..., C)."""
    state = net.logits.conv3d.state_dict()
    product = ops.matmul(features, constant(state["weight"].flatten(1)), False, True, name=f"{CLASSIFIER} of {of}")
    return ops.add(product, constant(state["bias"]))


def constant(tensor: Tensor) -> openvino.Node:
    """Add weights as a float32 constant."""
    return ops.constant(tensor.detach().to(torch.float32).contiguous().numpy())


def shape(*lengths: int) -> npt.NDArray[np.int64]:
    """Return axes or lengths in the form that OpenVINO's operations take."""
    return np.array(lengths, np.int64)
