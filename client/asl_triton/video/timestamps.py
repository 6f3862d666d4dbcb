"""Gives each frame the time at which a player shows it, even if timestamps are missing, equal or wrong."""

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

MAX_SHARING = 16  # frames held until the next plausible timestamp; decoded frames are large
MIN_STEP_S = 1e-6  # between frames, finer than any container's clock
RESTART_S = 1.0  # if timestamps drop by more and then rise again, the file is several recordings joined together


def assign_times(
    stamped: Iterable[tuple[T, float | None]], frame_s: float, end_s: float = math.inf
) -> Iterator[tuple[T, float]]:
    """Yield frames with rising times in seconds, from frames with timestamps, which are None if missing.

    A timestamp is ignored if it is missing, does not rise, or is above the next one. Its frames are spread evenly up to
    the next timestamp that is not ignored, at most `frame_s` apart. The last timestamp is also ignored if it is more
    than a second after `end_s`, the end that the container declares.
    """
    run: list[T] = []  # the frame shown at `began_s`, and the frames after it without a usable timestamp
    began_s, offset_s = -math.inf, 0.0
    for (frame, stamp), following in _with_next_stamp(stamped):
        time_s = _finite(stamp) + offset_s
        next_s = _finite(following) + offset_s
        if not run and began_s == -math.inf and math.isnan(time_s):
            time_s = 0.0
        if began_s - time_s > RESTART_S and time_s < next_s <= began_s:
            restarted_s = began_s + frame_s * len(run)
            offset_s += restarted_s - time_s
            time_s, next_s = restarted_s, next_s + restarted_s - time_s
        is_ahead = began_s < next_s < time_s or (following is None and time_s > max(end_s, began_s) + 1.0)
        if time_s > began_s + MIN_STEP_S * len(run) and not (is_ahead and run):
            yield from _spread(run, began_s, time_s, frame_s)
            run, began_s = [frame], time_s
        else:
            run.append(frame)
            if len(run) > MAX_SHARING:
                yield from _spread(run[:-1], began_s, math.inf, frame_s)
                run, began_s = run[-1:], began_s + frame_s * MAX_SHARING
    yield from _spread(run, began_s, math.inf, frame_s)


def _with_next_stamp(
    stamped: Iterable[tuple[T, float | None]],
) -> Iterator[tuple[tuple[T, float | None], float | None]]:
    """Yield each frame with its timestamp and the timestamp of the next frame, which is None for the last."""
    last: tuple[T, float | None] | None = None
    for current in stamped:
        if last is not None:
            yield last, current[1]
        last = current
    if last is not None:
        yield last, None


def _finite(stamp: float | None) -> float:
    """Return a timestamp, or NaN, which makes every comparison false, if there is none."""
    return stamp if stamp is not None and math.isfinite(stamp) else math.nan


def _spread(run: list[T], began_s: float, until_s: float, frame_s: float) -> Iterator[tuple[T, float]]:
    """Spread the frames of a run evenly from `began_s` up to `until_s`, at most `frame_s` apart."""
    step_s = min((until_s - began_s) / len(run), frame_s) if run else 0.0
    for place, frame in enumerate(run):
        yield frame, began_s + step_s * place
