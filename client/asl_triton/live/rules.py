"""When a live session sends a request, and when it reports a sign."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asl_triton.errors import AslTritonError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.presets import Preset
from asl_triton.video.windows import POSITION_FRAMES


@dataclass(frozen=True)
class LiveRules:
    """When to send a request, and when to report a sign.

    With a `vocabulary`, only its glosses are reported. Frames are counted at the preset's rate, or at 25 per second.

    Raises:
        AslTritonError: a value is out of range.
    """

    window_frames: int | None = None  # per request; None for the preset's
    stride_frames: int = POSITION_FRAMES  # from one request to the next
    min_confidence: float = Segmentation.min_confidence  # of a reported sign
    gone_s: float = 0.4  # a gloss that returns after a longer absence is a new sign
    repeat_s: float = 4.0  # a gloss that does not end is reported again after this time
    vocabulary: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.vocabulary is not None:
            object.__setattr__(self, "vocabulary", frozenset(self.vocabulary))  # searched for every answer
        if not 0 < self.min_confidence <= 1:
            raise AslTritonError(
                f"min_confidence is {self.min_confidence}: use more than 0 (or pauses count as signs) and at most 1"
            )
        for name in ("window_frames", "stride_frames"):
            frames = getattr(self, name)
            if frames is not None and frames < 1:
                raise AslTritonError(f"{name} is {frames}: use at least 1 frame")
        if not self.gone_s >= 0:
            raise AslTritonError(f"gone_s is {self.gone_s}: use at least 0 seconds")
        if not self.repeat_s > 0:
            raise AslTritonError(f"repeat_s is {self.repeat_s}: use more than 0 seconds")

    def window_length(self, preset: Preset) -> int:
        """Return the frames per request for a model with this preset.

        Raises:
            AslTritonError: the preset does not accept windows of this length.
        """
        frames = self.window_frames or preset.window_frames
        if not preset.min_frames <= frames <= preset.max_frames:
            raise AslTritonError(
                f"a window of {frames} frames is out of range: preset {preset.name!r} accepts {preset.min_frames} to "
                f"{preset.max_frames} frames"
            )
        return frames

    def class_ids(self, labels: Sequence[str], preset: Preset) -> npt.NDArray[np.intp]:
        """Return the classes that may be reported, for a model with these labels and this preset.

        Raises:
            LabelsError: the vocabulary has glosses that are not among the labels.
            AslTritonError: the window does not fit the preset.
        """
        self.window_length(preset)
        return Ranking(vocabulary=self.vocabulary).class_ids(labels)
