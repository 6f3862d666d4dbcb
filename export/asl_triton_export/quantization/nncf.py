"""A graph in int8, by NNCF's quantization after training."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rich

from asl_triton.models.served import FRAMES
from asl_triton.transport.base import Array
from asl_triton_export.formats.openvino_graph import CLASSIFIER
from asl_triton_export.formats.openvino_runtime import openvino

import nncf  # isort: skip - after OpenVINO, which is imported without its telemetry


def quantize(graph: openvino.Model, clips: Sequence[Array]) -> openvino.Model:
    """The graph with int8 weights and activations, whose ranges are those that `clips` cause, each as the input takes
    it. The classifier stays as it is: it costs nothing, and its rounding would be the answer's."""
    with _silent():
        return nncf.quantize(
            graph,
            nncf.Dataset(clips, lambda clip: {FRAMES: clip}),
            subset_size=len(clips),
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(patterns=[f"{CLASSIFIER}.*"]),
        )


@contextmanager
def _silent() -> Iterator[None]:
    """NNCF draws its progress on rich's own console, and logs to standard output."""
    console = rich.get_console()
    loud, console.quiet = console.quiet, True
    nncf.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        console.quiet = loud
