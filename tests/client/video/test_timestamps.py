"""Times of frames whose timestamps are missing, equal, decreasing, or far ahead."""

import itertools
import math
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asl_triton.video.timestamps import MAX_SHARING, assign_times

NAN, INF = math.nan, math.inf
FRAME_S = 0.04


def assign(stamps: list[float | None], end_s: float = math.inf) -> list[float]:
    timed = list(assign_times(enumerate(stamps), FRAME_S, end_s))
    assert [frame for frame, _ in timed] == list(range(len(stamps)))  # all of them, in order
    return [time_s for _, time_s in timed]


@pytest.mark.parametrize(("stamps", "times_s"), [
    ([], []),
    ([0, 0.04, 0.08], [0, 0.04, 0.08]),
    ([1.5, 1.54, 1.58], [1.5, 1.54, 1.58]),  # the video starts after the audio
    ([0, 5, 5.04], [0, 5, 5.04]),  # a pause
    ([None, None, None], [0, 0.04, 0.08]),  # a container without timestamps
    ([NAN, NAN, 0.08], [0, 0.04, 0.08]),
    ([0, INF, -INF], [0, 0.04, 0.08]),
    ([0, 0, 0, 0.09, 0.09, 0.09], [0, 0.03, 0.06, 0.09, 0.13, 0.17]),  # three equal ones each
    ([0, 0, 0, 9], [0, 0.04, 0.08, 9]),  # three equal ones before a pause
    ([0, 0.04, 1000, 0.12, 0.16], [0, 0.04, 0.08, 0.12, 0.16]),  # one far ahead
    ([0, 0.2, 0.1, 0.24], [0, 0.04, 0.1, 0.24]),  # two out of order
    ([0, 0.04, 0.08, 0.02, 0.16], [0, 0.04, 0.08, 0.12, 0.16]),  # one that jumps back
    ([0, 10, 10.04, 0, 0.04, 0.08], [0, 10, 10.04, 10.08, 10.12, 10.16]),  # recordings joined end to end
], ids=str)  # fmt: skip
def test_frames_get_increasing_times(stamps: list[float | None], times_s: list[float]) -> None:
    assert assign(stamps) == pytest.approx(times_s)


def test_last_timestamp_far_after_the_declared_end_is_ignored() -> None:
    assert assign([0, 0.04, 900], end_s=0.12) == pytest.approx([0, 0.04, 0.08])
    assert assign([0, 0.04, 900]) == [0, 0.04, 900]
    assert assign([0, 0.04, 900], end_s=901) == [0, 0.04, 900]


def test_frames_without_timestamps_are_not_held_back_for_long() -> None:
    drawn = 0

    def frames() -> Iterator[tuple[int, None]]:
        nonlocal drawn
        for drawn in itertools.count():
            yield drawn, None

    timed = assign_times(frames(), FRAME_S)
    assert [time_s for _, time_s in itertools.islice(timed, 100)] == pytest.approx([n * FRAME_S for n in range(100)])
    assert drawn <= 100 + MAX_SHARING


STAMPS = st.none() | st.floats(0, 100) | st.sampled_from([0.0, 0.04, NAN, INF])


@given(st.lists(STAMPS, max_size=80))
@example([None, None, 5e-324])
def test_times_always_increase(stamps: list[float | None]) -> None:
    times_s = assign(stamps)
    assert all(math.isfinite(time_s) for time_s in times_s)
    assert all(before < after for before, after in itertools.pairwise(times_s))
