"""Word-level American Sign Language recognition, served by NVIDIA Triton: a clip of a signer in, ranked glosses out.

>>> from asl_triton import Recognizer
>>> with Recognizer("localhost:8001") as recognizer:
...     print(recognizer.recognize("clip.mp4").gloss)
"""

from importlib import metadata

from asl_triton.errors import AslTritonError, CheckpointError, ContractError, LabelsError, ServerError, VideoError
from asl_triton.predictions import Prediction, Recognition
from asl_triton.presets import PRESETS, Preset
from asl_triton.recognizer import AsyncRecognizer, Recognizer
from asl_triton.transport import Security
from asl_triton.video import Limits

__all__ = [
    "PRESETS",
    "AslTritonError",
    "AsyncRecognizer",
    "CheckpointError",
    "ContractError",
    "LabelsError",
    "Limits",
    "Prediction",
    "Preset",
    "Recognition",
    "Recognizer",
    "Security",
    "ServerError",
    "VideoError",
]
__version__ = metadata.version("asl-triton")
