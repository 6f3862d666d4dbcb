"""OpenVINO without its telemetry, and how we let it compile."""

import sys
from pathlib import Path

# Importing OpenVINO or NNCF reports to their maker over the network, unless this module of theirs cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino import opset8 as ops  # noqa: E402 - of 2022, so that older servers read it too

__all__ = ["compile_model", "openvino", "ops"]


def compile_model(model: openvino.Model | Path, precision: str) -> openvino.CompiledModel:
    """A graph, or the file of one, ready to be asked on this machine's CPU.

    `precision` is that of `asl-triton export`: bf16 computes in bfloat16 where the processor can. It has to be said:
    OpenVINO does so by itself where nothing is said.
    """
    return openvino.Core().compile_model(model, "CPU", compile_options(precision))


def compile_options(precision: str) -> dict[str, str]:
    """What is asked of OpenVINO: one clip at a time, on all cores."""
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
