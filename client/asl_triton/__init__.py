"""Word-level American Sign Language recognition, served by NVIDIA Triton: a clip of a signer in, ranked glosses out.

>>> from asl_triton import Recognizer
>>> with Recognizer("localhost:8001") as recognizer:
...     print(recognizer.recognize("clip.mp4").gloss)
"""

from importlib import metadata

from asl_triton.errors import (
    AslTritonError,
    BusyError,
    CheckpointError,
    ConnectionLostError,
    ContractError,
    DictionaryError,
    LabelsError,
    ServerError,
    VideoError,
)
from asl_triton.live.recognizer import LiveRecognizer, LiveSession
from asl_triton.live.rules import LiveRules
from asl_triton.live.state import LiveEvent, LiveState
from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.presets import PRESETS, Preset
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.results import Curve, Prediction, Recognition, Segment, SignerBox, Step, Timeline
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton.teaching.embedding import Embedding
from asl_triton.transport.security import Security
from asl_triton.video.reader import Limits

__all__ = [
    "PRESETS",
    "AslTritonError",
    "AsyncRecognizer",
    "BusyError",
    "CheckpointError",
    "ConnectionLostError",
    "ContractError",
    "Curve",
    "DictionaryError",
    "Embedding",
    "LabelsError",
    "Limits",
    "LiveEvent",
    "LiveRecognizer",
    "LiveRules",
    "LiveSession",
    "LiveState",
    "Prediction",
    "Preset",
    "Recognition",
    "Recognizer",
    "Security",
    "Segment",
    "Segmentation",
    "ServerError",
    "SignDictionary",
    "SignerBox",
    "Step",
    "Timeline",
    "VideoError",
]
__version__ = metadata.version("asl-triton")
