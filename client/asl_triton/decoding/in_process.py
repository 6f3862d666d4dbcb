"""Decoding in this process."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from asl_triton.decoding.base import (
    DecodeSession,
    VideoInfo,
    WindowingOptions,
    closed_error,
    estimate_crops_held,
)
from asl_triton.errors import VideoError
from asl_triton.signer.search import FilmFramer, frame_signer
from asl_triton.video.colors import Image
from asl_triton.video.excerpt import cut_excerpt
from asl_triton.video.preprocessing import CROP_SHAPE, choose_frame_step, crop_frames, pace_frames
from asl_triton.video.reader import DECLARED_EXCESS, Frame, Video, open_video
from asl_triton.video.windows import Window, WindowTiming, cut_timed_windows, cut_windows_by_shot


class InProcessDecodeSession(DecodeSession):
    """Decodes in this process: a video that crashes the decoder crashes everything."""

    _video: Video | None = None

    def _open(self) -> tuple[VideoInfo, Iterator[tuple[Window, WindowTiming]]]:
        self._video = video = open_video(self._source, self.options.limits, self.name)
        self.warnings = video.warnings
        return read_video_info(video, self.options), self._read_windows(video)

    def _read_windows(self, video: Video) -> Iterator[tuple[Window, WindowTiming]]:
        for window in cut_video(video, self.options, self._read_frames(video)):
            self.signer, self.shot_boxes = video.signer, video.shot_boxes
            yield window

    def _read_frames(self, video: Video) -> Iterator[Frame]:
        for frame in video:
            self.num_frames, self.duration_s, self.share_read = video.num_frames, video.duration_s, video.share_read
            if self._is_closed:
                raise closed_error(self.name)
            yield frame
        self.lost_frames = video.lost_frames

    def _interrupt(self) -> None:
        """The next frame ends it."""

    def _release(self) -> None:
        if self._video is not None:
            self._video.close()


def read_video_info(video: Video, options: WindowingOptions) -> VideoInfo:
    """What is known about an open video.

    Raises:
        VideoError: its container declares too many frames, where that is to be believed.
    """
    most = options.limits.max_frames
    if options.refuses_early and video.declared_frames > most * DECLARED_EXCESS:
        raise VideoError(f"{video.name} has more than {most:,} frames, the limit: cut it shorter")
    return VideoInfo(
        num_bytes=video.num_bytes,
        width=video.width,
        height=video.height,
        declared_frames=video.declared_frames,
        crops_held=estimate_crops_held(video, options.preset),
    )


def cut_video(
    video: Video, options: WindowingOptions, frames: Iterable[Frame], memory: Image | None = None
) -> Iterator[tuple[Window, WindowTiming]]:
    """The windows of a video's frames. A clip's only window is a view of `memory`, where that is given."""
    if options.excerpt is not None:
        frames = cut_excerpt(frames, options.excerpt, video.name)
    step = choose_frame_step(options.preset, video.frame_rate)
    if step > 1:
        frames = islice(frames, 0, None, step)
        video.warnings.append(
            f"{video.frame_rate:.0f} frames per second: one of every {step} was used (training videos had 24 to 30)"
        )
    if options.is_film:
        film = FilmFramer(options.preset, options.signer, finds=options.finds_signer)
        video.shot_boxes = film.boxes
        paced = pace_frames(frames, options.preset, options.limits.max_frames)
        yield from cut_windows_by_shot(film.crop_shots(paced), options.preset, video.frame_rate / step)
        video.warnings += film.list_warnings()
        return
    preset = options.preset
    framed = frame_signer(frames, preset, options.signer, finds=options.finds_signer)
    video.signer = framed.signer
    video.warnings += framed.warnings
    if memory is None:
        memory = np.empty((preset.longest_window, *CROP_SHAPE), np.uint8)  # pages are allocated when written to
    # Crops go straight into the window, except centered ones, which are chosen once all frames are known.
    places = None if preset.frames == "centered" else memory[: preset.longest_window]
    crops = crop_frames(framed.frames, preset, options.limits.max_frames, framed.signer, places)
    yield from cut_timed_windows(crops, preset, video.frame_rate / step, memory)
