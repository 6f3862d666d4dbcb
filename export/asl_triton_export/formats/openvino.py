"""The format `openvino`: a graph in `model.xml`, its weights in `model.bin`."""

from collections.abc import Sequence
from pathlib import Path

from asl_triton.models.served import LOGITS
from asl_triton.results import Logits
from asl_triton.transport.base import Array
from asl_triton.video.reader import Image
from asl_triton_export.formats.openvino_graph import build_graph
from asl_triton_export.formats.openvino_runtime import compile_model, openvino
from asl_triton_export.i3d import I3D
from asl_triton_export.quantization.calibration import Calibration
from asl_triton_export.quantization.report import Ask, QuantizationCost, measure_cost
from asl_triton_export.triton_config import ServedNetwork

GRAPH = "model.xml"


def save_openvino(net: I3D, network: ServedNetwork, folder: Path, clips: Sequence[Image]) -> None:
    """Write `model.xml` and `model.bin`, quantized where the precision is int8."""
    graph = load_graph(net, network)
    if network.precision == "int8":
        from asl_triton_export.quantization.nncf import quantize  # here, because NNCF takes seconds to import

        graph = quantize(graph, [network.tensor(clip) for clip in clips])
    openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)


def open_openvino(network: ServedNetwork, folder: Path) -> Ask:
    """What `save_openvino` wrote, to be asked."""
    return run_graph(compile_model(folder / GRAPH, network.precision))


def count_operations(
    net: I3D, network: ServedNetwork, folder: Path, calibration: Calibration, labels: Sequence[str]
) -> QuantizationCost:
    """What was written, beside the same network in float32.

    Raises:
        VideoError: not one clip that was held out can be read.
    """
    exact = run_graph(compile_model(load_graph(net, network), "fp32"))
    return measure_cost(exact, open_openvino(network, folder), network, calibration, labels)


def load_graph(net: I3D, network: ServedNetwork) -> openvino.Model:
    """The graph in float32."""
    return build_graph(net, network.preset, normalized_input=network.input_type == "fp32")


def run_graph(engine: openvino.CompiledModel) -> Ask:
    """A compiled graph as a function from frames to logits."""

    def ask(frames: Array) -> Logits:
        logits: Logits = engine(frames)[LOGITS][0]
        return logits

    return ask
