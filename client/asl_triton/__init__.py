"""Word-level American Sign Language recognition, served by NVIDIA Triton: a clip of a signer in, ranked glosses out.

>>> from asl_triton import Recognizer
>>> with Recognizer("localhost:8001") as recognizer:
...     print(recognizer.recognize("clip.mp4").gloss)
"""

import importlib
import typing

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
from asl_triton.presets import PRESETS, Preset
from asl_triton.results import Curve, Prediction, Recognition, Segment, SignerBox, Step, Timeline
from asl_triton.video.reader import Limits

if typing.TYPE_CHECKING:
    from asl_triton.live.recognizer import LiveRecognizer, LiveSession
    from asl_triton.live.rules import LiveRules
    from asl_triton.live.state import LiveEvent, LiveState
    from asl_triton.postprocessing.segmentation import Segmentation
    from asl_triton.recognizer.async_client import AsyncRecognizer
    from asl_triton.recognizer.sync_client import Recognizer
    from asl_triton.teaching.dictionary import SignDictionary
    from asl_triton.teaching.embedding import Embedding
    from asl_triton.transport.security import Security

# Imported when first used, because the processes that decode import this package, too, and do without gRPC.
_LAZY = {
    "AsyncRecognizer": "recognizer.async_client",
    "Embedding": "teaching.embedding",
    "LiveEvent": "live.state",
    "LiveRecognizer": "live.recognizer",
    "LiveRules": "live.rules",
    "LiveSession": "live.recognizer",
    "LiveState": "live.state",
    "Recognizer": "recognizer.sync_client",
    "Security": "transport.security",
    "Segmentation": "postprocessing.segmentation",
    "SignDictionary": "teaching.dictionary",
}

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


def __getattr__(name: str) -> typing.Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("asl-triton")
    if name in _LAZY:
        return getattr(importlib.import_module(f"asl_triton.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'asl_triton' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
