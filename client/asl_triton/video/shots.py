"""Detects the cuts in a film, so that no window crosses one.

A network that was trained on clips of one shot mistakes a cut for a movement. If each shot is cut into windows
separately, the network sees only the kind of clips that it was trained on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.video.preprocessing import Crop

TILES = 16  # per side; their mean colors are compared
# A moving signer changes a few tiles; a moving camera changes all of them a little, frame after frame. In WLASL's clips
# and the demo signer's films, the median change between frames is 1 level, and 18 or more at cuts.
CUT_LEVELS = 10  # of 255; at a cut, at least half of the tiles change by this much or more
CUT_RATIO = 3.0  # at a cut, the change is at least this many times that at the previous frame
SHORTEST_SHOT = 9  # crops; a flash or a flicker is not a shot


def number_shots(crops: Iterable[Crop]) -> Iterator[Crop]:
    """Yield the crops of a video in order, each with the number of its shot."""
    detector = ShotDetector()
    return (replace(crop, shot=detector(crop)) for crop in crops)


class ShotDetector:
    """Call it with the crops of a video in order. It returns the number of each crop's shot, from 0."""

    def __init__(self) -> None:
        self._tiles: npt.NDArray[np.int16] | None = None
        self._change = 0.0
        self._length = 0
        self._number = 0

    def __call__(self, crop: Crop) -> int:
        tiles = cv2.resize(crop.image, (TILES, TILES), interpolation=cv2.INTER_AREA).astype(np.int16)
        change = 0.0 if self._tiles is None else float(np.median(np.abs(tiles - self._tiles).max(axis=2)))
        self._length += 1
        if self._length > SHORTEST_SHOT and change >= max(CUT_LEVELS, CUT_RATIO * self._change):
            self._number += 1
            self._length = 1
        self._tiles, self._change = tiles, change
        return self._number
