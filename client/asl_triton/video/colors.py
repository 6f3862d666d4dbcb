"""Decoded frames to upright BGR images, with the colors that the weights were trained on."""

from typing import Any

import numpy as np
import numpy.typing as npt
from av import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

Image = npt.NDArray[np.uint8]


class FrameConverter:
    """Converts the frames of one video.

    YUV is read as BT.601 whatever the file says, in the range that it says. This is what OpenCV 4.11 does, which read
    the videos that the weights were trained on; it gives the same bytes. Pixels count as square, and alpha is dropped,
    as there.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._matrix: npt.NDArray[np.int32] | None = None
        self._is_first = True

    def convert(self, frame: VideoFrame) -> Image:
        """One frame as uint8 BGR (H, W, 3), turned and mirrored as the display matrix of the first one says."""
        converted = self._reformatter.reformat(
            frame,
            format="bgr24",
            src_colorspace=Colorspace.ITU601,
            dst_colorspace=Colorspace.ITU601,
            interpolation=Interpolation.BICUBIC,
            threads=1,  # videos are decoded side by side
        )
        if self._is_first:  # PyAV keeps a frame whose side data was read until the garbage is collected
            self._matrix, self._is_first = read_display_matrix(frame), False
        return make_upright(view_pixels(converted), self._matrix)


def view_pixels(frame: VideoFrame) -> Image:
    """The pixels of a `bgr24` frame, (H, W, 3), without a copy: the image keeps the frame's memory."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : 3 * frame.width].reshape(frame.height, frame.width, 3)


def read_display_matrix(frame: VideoFrame) -> npt.NDArray[np.int32] | None:
    """The display matrix of a frame, 3 x 3 in 16.16 fixed point (FFmpeg's libavutil/display.h); None if it has none."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def make_upright(image: Image, matrix: npt.NDArray[np.int32] | None) -> Image:
    """Turn and mirror an image (H, W, 3) by a display matrix, which maps (x, y) to (a x + c y, b x + d y).

    A matrix that turns by no multiple of 90 degrees is rounded to the nearest.
    """
    if matrix is None:
        return image
    (a, b), (c, d) = matrix[0, :2].tolist(), matrix[1, :2].tolist()
    if abs(b) > abs(a):  # a quarter turn: x and y change places
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
