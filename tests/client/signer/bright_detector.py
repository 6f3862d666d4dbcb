"""A stand-in for `person-detection-asl-0001`, with the same input and outputs, that takes bright areas for people."""

from pathlib import Path

import numpy as np
import pytest

SIDE = 320


def save_bright_detector(path: Path, columns: int = 5) -> None:
    """Write the network: input (1, 3, 320, 320) in BGR, outputs boxes (100, `columns`) and labels (100)."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    frame = ops.parameter([1, 3, SIDE, SIDE], np.float32, name="input")
    bright = ops.convert(ops.greater(ops.reduce_max(frame, [0, 1]), np.float32(200)), np.float32)  # (320, 320)
    positions = np.arange(SIDE, dtype=np.float32)
    ends = []
    for axis in (0, 1):  # reduce each column, then each row
        seen = ops.greater(ops.reduce_max(bright, [axis]), np.float32(0.5))  # (320,)
        ends.append(ops.reduce_min(ops.select(seen, positions, np.float32(SIDE)), [0], keep_dims=True))
        ends.append(ops.reduce_max(ops.select(seen, positions + 1, np.float32(0)), [0], keep_dims=True))
    score = ops.multiply(ops.reduce_max(bright, [0, 1], keep_dims=False), np.float32(0.9))
    x0, x1, y0, y1 = ends
    row = ops.concat([x0, y0, x1, y1, ops.reshape(score, [1], False)], 0)  # (5,)
    padded = ops.pad(ops.unsqueeze(row, 0), [0, 0], [99, columns - 5], "constant", np.float32(0))
    boxes, labels = ops.result(padded), ops.result(ops.constant(np.zeros(100, np.float32)))
    boxes.get_output_tensor(0).set_names({"boxes"})
    labels.get_output_tensor(0).set_names({"labels"})
    openvino.save_model(openvino.Model([boxes, labels], [frame], "bright"), str(path), compress_to_fp16=False)
