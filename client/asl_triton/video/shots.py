"""Where a film cuts from one picture to another: windows begin anew there.

A network that was trained on clips of one shot takes a cut for a movement. Cut into shots, each of which is windowed
as a clip is, a film shows it nothing else than what it was trained on.
"""

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.video.preprocessing import Crop

TILES = 16  # a side, of each of which the mean color is compared
# A signer who moves changes a few tiles, a camera that moves changes all of them a little and goes on doing so: in
# WLASL's clips and the demo signer's films the median change from frame to frame is 1 level, and 18 and more at cuts.
CUT_LEVELS = 10  # of 255: what more than half of the tiles change by at least
CUT_RATIO = 3.0  # times the change from the frame before
SHORTEST_SHOT = 9  # crops: a flash, or a flicker, is no shot


class ShotDetector:
    """Called with the crops of a video in order: the number of the shot that each is in, from 0."""

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
