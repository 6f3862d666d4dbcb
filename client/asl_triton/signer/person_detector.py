"""Finds people with Intel's `person-detection-asl-0001`, made for signers, if it was fetched and OpenVINO is installed.

`asl-triton fetch signer-detector` fetches it. Its README in openvinotoolkit/open_model_zoo describes input and outputs.
"""

import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.errors import AslTritonError
from asl_triton.video.colors import Image

FOLDER_VARIABLE = "ASL_TRITON_SIGNER_DETECTOR"
MODEL = "person-detection-asl-0001.xml"
LEAST_SCORE = 0.5  # of a person

People = npt.NDArray[np.float64]


def find_detector_folder() -> Path:
    """Return the folder for the detector: $ASL_TRITON_SIGNER_DETECTOR, or a folder in the user's cache."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asl-triton" / "signer-detector"


def find_people(images_bgr: Sequence[Image]) -> People | None:
    """Find people in frames, uint8 BGR (H, W, 3): left, top, right and bottom in pixels, (N, 4), over all frames.

    Returns None if the detector was not fetched, or OpenVINO is not installed.

    Raises:
        AslTritonError: the fetched files are not the detector.
    """
    detector = load_detector(find_detector_folder() / MODEL)
    if detector is None:
        return None
    return np.concatenate([detect_people(detector, image) for image in images_bgr])


def detect_people(detector: Any, image_bgr: Image) -> People:
    """Detect the people in one frame (N, 4), which is stretched to the network's input, 320 x 320."""
    height, width = image_bgr.shape[:2]
    rows, columns = detector.input(0).shape[2:]
    stretched = cv2.resize(image_bgr, (columns, rows), interpolation=cv2.INTER_AREA)
    outputs = detector(stretched.transpose(2, 0, 1)[None].astype(np.float32))
    boxes = next(values for values in outputs.to_tuple() if values.shape[-1] == 5)  # (100, 5)
    people = boxes[boxes[:, 4] >= LEAST_SCORE, :4].astype(np.float64)
    return np.asarray(people * (width / columns, height / rows, width / columns, height / rows))


@cache
def load_detector(path: Path) -> Any:
    """Load and compile the network. Returns None if it was not fetched, or OpenVINO is not installed."""
    if not path.is_file():
        return None
    # OpenVINO sends telemetry when it is imported, unless importing this module fails.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        return None
    remedy = f"{path} is not the signer detector: fetch it again with `asl-triton fetch signer-detector --force`"
    try:
        # The network keeps its Core alive: deleting a Core can take away the stack that signal handlers run on.
        detector = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
        shapes = [tuple(port.shape) for port in detector.inputs + detector.outputs]
    except RuntimeError as exc:
        raise AslTritonError(remedy) from exc
    if len(shapes) < 2 or shapes[0][:2] != (1, 3) or all(shape[-1:] != (5,) for shape in shapes[1:]):
        raise AslTritonError(remedy)
    return detector
