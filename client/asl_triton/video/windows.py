"""Cuts a video's crops into windows, one per request."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from asl_triton.presets import Preset
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import Crop

T = TypeVar("T")

POSITION_FRAMES = 8  # frames of a window per position of the network's temporal output; a step averages two positions


@dataclass(frozen=True)
class Window:
    """Consecutive crops for one request: `frames` is uint8 RGB (T, 224, 224, 3), `start` the number of the first one.

    `is_only` says that the video has no other window.
    """

    start: int
    frames: Image
    is_only: bool = False


@dataclass(frozen=True)
class WindowTiming:
    """Where a window is in time. `start` is the number of its first crop in the video, `num_frames` its length.

    `edges_s` (K + 1,) are the times at which each of its K crops is first shown, and the time at which the last one
    ends. K is less than `num_frames` if the last crop is repeated. `shot` is the number of the window's shot in a film
    (see `shots.py`).
    """

    start: int
    num_frames: int
    edges_s: npt.NDArray[np.float64]
    shot: int = 0


def cut_windows(images: Iterator[Image], preset: Preset, memory: Image | None = None) -> Iterator[Window]:
    """Cut crops into windows: the whole clip, or one window every `stride_frames`, with the last one at the very end.

    A clip that is too short for the network or for the preset's windows repeats its last frame. A clip of more than
    `max_frames` is cut into windows even if the preset takes whole clips. With a preset that takes the centered frames,
    they are the only window. If `memory` is given, with room for the preset's `longest_window`, an only window is a
    view of it, and crops that are already there are not copied.
    """
    if preset.frames == "centered":
        start, chosen = choose_centered(images, preset)
        if chosen:
            yield pad_window(start, chosen, preset.window_frames, memory)
        return
    most = preset.longest_window
    least = preset.window_frames if preset.frames == "window" else preset.min_frames
    first = next(images, None)
    if first is None:
        return
    held = np.empty((most, *first.shape), np.uint8) if memory is None else memory  # pages are allocated when written
    count = 0
    for image in islice(chain([first], images), most):
        if not np.may_share_memory(image, held[count]):
            held[count] = image
        count += 1
    after = next(images, None)
    if after is not None:
        if memory is not None:
            held = held[:most].copy()  # the caller may reuse the memory between windows
        yield from slide_windows(chain(held, [after], images), preset.window_frames, preset.stride_frames)
        return
    length = max(count, least)
    held[count:length] = held[count - 1]
    yield Window(0, held[:length], is_only=True)


def choose_centered(frames: Iterable[T], preset: Preset) -> tuple[int, list[T]]:
    """Choose the centered frames of a clip, at most `window_frames`, and return the number of the first one and them.

    This counts all frames but keeps at most `max_centered_frames` in memory. Source: ASL Citizen's loader
    (I3D/aslcitizen_dataset.py), which takes the number of frames from the container.
    """
    held: list[T] = []
    count = 0
    for count, frame in enumerate(frames, start=1):
        if count <= preset.max_centered_frames:
            held.append(frame)
    step = 1 + sum(count >= length for length in preset.step_from)
    covered = preset.window_frames * step
    start = min(max((count - covered) // 2, 0), preset.latest_start)
    return start, held[start : start + covered : step]


def pad_window(start: int, images: Sequence[Image], length: int, memory: Image | None = None) -> Window:
    """Build the only window of a video from these crops, with the last one repeated up to `length`."""
    frames = np.empty((length, *images[0].shape), np.uint8) if memory is None else memory[:length]
    for place in range(length):
        frames[place] = images[min(place, len(images) - 1)]
    return Window(start, frames, is_only=True)


def cut_timed_windows(
    cut: Iterable[Crop], preset: Preset, frame_rate: float, memory: Image | None = None
) -> Iterator[tuple[Window, WindowTiming]]:
    """Cut windows as `cut_windows` does, each with its timing. `frame_rate` says how long the last crop is shown."""
    if preset.frames == "centered":
        start, chosen = choose_centered(cut, preset)
        if chosen:
            times = [crop.time_s for crop in chosen]
            shown_s = times[-1] - times[-2] if len(times) > 1 else 1 / (preset.frame_rate or frame_rate)
            window = pad_window(start, [crop.image for crop in chosen], preset.window_frames, memory)
            yield window, WindowTiming(start, preset.window_frames, np.array([*times, times[-1] + shown_s]))
        return
    times_s: deque[float] = deque()
    first = 0  # the number of the crop of times_s[0]

    def images() -> Iterator[Image]:
        for one in cut:
            times_s.append(one.time_s)
            yield one.image

    for window in cut_windows(images(), preset, memory):
        for _ in range(window.start - first):
            times_s.popleft()
        first = window.start
        edges_s = list(islice(times_s, len(window.frames) + 1))
        if len(edges_s) <= len(window.frames):  # no crop follows
            edges_s.append(edges_s[-1] + 1 / (preset.frame_rate or frame_rate))
        yield window, WindowTiming(window.start, len(window.frames), np.array(edges_s))


def slide_windows(images: Iterable[Image], window: int, stride: int) -> Iterator[Window]:
    """Yield windows of `window` crops every `stride`, and one at the very end unless the last one reaches it."""
    held: deque[Image] = deque(maxlen=window)
    count, covered, due = 0, 0, window
    for image in images:
        held.append(image)
        count += 1
        if count == due:
            yield Window(count - window, np.stack(held))
            covered, due = count, due + stride
    if count > covered:
        yield Window(count - len(held), np.stack(held))


def cut_windows_by_shot(
    cut: Iterable[Crop], preset: Preset, frame_rate: float
) -> Iterator[tuple[Window, WindowTiming]]:
    """Cut a film's windows as `cut_timed_windows` does, shot by shot. No window crosses a cut, and none `is_only`."""
    shown = 0

    def counted(shot: Iterable[Crop]) -> Iterator[Crop]:
        nonlocal shown
        for crop in shot:
            shown += 1
            yield crop

    for number, shot in groupby(cut, key=attrgetter("shot")):
        first = shown
        for window, span in cut_timed_windows(counted(shot), preset, frame_rate):
            start = first + span.start
            yield replace(window, start=start, is_only=False), replace(span, start=start, shot=number)
