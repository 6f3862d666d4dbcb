"""Decoding in this process."""

from collections.abc import Iterator

import cv2

from asl_triton.decoding.base import DecodeSession, VideoInfo, WindowingOptions, measure_stream
from asl_triton.decoding.frame_budget import estimate_frames_in_memory
from asl_triton.errors import VideoError
from asl_triton.video.preprocessing import crop_frames
from asl_triton.video.reader import DECLARED_EXCESS, Frame, Image, Source, Video, open_video
from asl_triton.video.windows import Window, WindowTiming, cut_timed_windows, cut_windows_by_shot


class InProcessDecodeSession(DecodeSession):
    """Decodes in this process: what a video does to the decoder, it does to all.

    An only window is a part of `memory`, where that is given: room for `max_frames` crops of the preset.
    """

    _video: Video | None = None
    _windows: Iterator[tuple[Window, WindowTiming]] = iter(())

    def __init__(
        self, source: Source, cutting: WindowingOptions, name: str | None = None, *, memory: Image | None = None
    ) -> None:
        super().__init__(source, cutting, name)
        self._memory = memory

    def _open(self) -> VideoInfo:
        cutting = self._cutting
        self._video = video = open_video(self._source, cutting.limits, self.name)
        if cutting.refuses_early and video.declared_frames > cutting.limits.max_frames * DECLARED_EXCESS:
            raise VideoError(
                f"{self.name} has more than {cutting.limits.max_frames:,} frames, the limit: cut it shorter"
            )
        self.warnings = video.warnings
        cut = crop_frames(self._frames(video), cutting.preset, cutting.limits.max_frames)
        if cutting.is_film:
            self._windows = cut_windows_by_shot(cut, cutting.preset, video.frame_rate)
        else:
            self._windows = cut_timed_windows(cut, cutting.preset, video.frame_rate, self._memory)
        return read_video_info(video, cutting)

    def _frames(self, video: Video) -> Iterator[Frame]:
        for frame in video:
            self.num_frames, self.duration_s, self.share_read = video.num_frames, video.duration_s, video.share_read
            if self._is_over:
                raise self._closed_error()
            yield frame

    def _next_window(self) -> tuple[Window, WindowTiming] | None:
        return next(self._windows, None)

    def _interrupt(self) -> None:
        """Its next frame ends it."""

    def _let_go(self) -> None:
        if self._video is not None:
            self._video.close()
        self._windows = iter(())  # which hold frames, and this


def read_video_info(video: Video, cutting: WindowingOptions) -> VideoInfo:
    """What is known of a video that is open."""
    width, height = (int(video.capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    return VideoInfo(
        num_bytes=measure_stream(video.stream),
        width=width,
        height=height,
        declared_frames=video.declared_frames,
        crops_held=estimate_frames_in_memory(video, cutting.preset),
    )
