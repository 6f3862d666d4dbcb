"""Quantizes networks to int8 with NNCF's post-training quantization."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rich

from asl_triton.models.served import FRAMES
from asl_triton.video.colors import Image
from asl_triton_export.formats.openvino import CLASSIFIER, build_served_graph, save_graph
from asl_triton_export.i3d import I3D
from asl_triton_export.triton_config import ServedNetwork

import nncf  # isort: skip - after formats.openvino, which turns telemetry off


def save_quantized(net: I3D, network: ServedNetwork, folder: Path, clips: Sequence[Image]) -> None:
    """Write a network's OpenVINO graph into a version folder with int8 weights and activations.

    The ranges of the activations are measured on `clips`, each uint8 RGB (T, 224, 224, 3). The classifier stays in
    float32, because it takes almost no time, and its rounding would show directly in the logits.
    """
    graph = build_served_graph(net, network)
    with _silence():
        quantized = nncf.quantize(
            graph,
            nncf.Dataset([network.tensor(clip) for clip in clips], lambda frames: {FRAMES: frames}),
            subset_size=len(clips),
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(patterns=[f"{CLASSIFIER}.*"]),
        )
    save_graph(quantized, folder)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep NNCF quiet: it draws progress bars on rich's global console and logs to standard output."""
    console = rich.get_console()
    loud, console.quiet = console.quiet, True
    nncf.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        console.quiet = loud
