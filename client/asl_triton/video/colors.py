"""Converts decoded frames to upright BGR images with the colors that the weights were trained on."""

from typing import Any

import numpy as np
import numpy.typing as npt
from av import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

Image = npt.NDArray[np.uint8]


class FrameConverter:
    """Converts the frames of one video.

    YUV is always read as BT.601, in the range that the file declares. OpenCV 4.11, which read the training videos of
    the weights, does the same and produces the same bytes. Like OpenCV, this treats pixels as square and drops alpha.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._matrix: npt.NDArray[np.int32] | None = None
        self._is_first = True

    def convert(self, frame: VideoFrame) -> Image:
        """Convert a frame to uint8 BGR (H, W, 3), rotated and mirrored by the display matrix of the first frame."""
        converted = self._reformatter.reformat(
            frame,
            format="bgr24",
            src_colorspace=Colorspace.ITU601,
            dst_colorspace=Colorspace.ITU601,
            interpolation=Interpolation.BICUBIC,
            threads=1,  # several videos are decoded in parallel
        )
        if self._is_first:  # PyAV keeps a frame whose side data was read until garbage collection
            self._matrix, self._is_first = read_display_matrix(frame), False
        return make_upright(view_pixels(converted), self._matrix)


def view_pixels(frame: VideoFrame) -> Image:
    """Return the pixels of a `bgr24` frame (H, W, 3) without copying: the image shares the frame's memory."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : 3 * frame.width].reshape(frame.height, frame.width, 3)


def read_display_matrix(frame: VideoFrame) -> npt.NDArray[np.int32] | None:
    """Read a frame's display matrix, 3 x 3 in 16.16 fixed point (FFmpeg's libavutil/display.h), or None."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def make_upright(image: Image, matrix: npt.NDArray[np.int32] | None) -> Image:
    """Rotate and mirror an image (H, W, 3) by a display matrix, which maps (x, y) to (a x + c y, b x + d y).

    Rotations are rounded to the nearest multiple of 90 degrees.
    """
    if matrix is None:
        return image
    (a, b), (c, d) = matrix[0, :2].tolist(), matrix[1, :2].tolist()
    if abs(b) > abs(a):  # a quarter turn swaps x and y
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
