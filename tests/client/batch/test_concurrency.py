"""The number of clips in flight, with simulated servers."""

import heapq
from dataclasses import dataclass

import pytest

from asl_triton.batch.concurrency import ConcurrencyController


@dataclass
class Clip:
    num_frames: int
    decode_s: float
    wait_s: float


def simulate(controller: ConcurrencyController, servers: int, frame_s: float = 0.01, clips: int = 4000) -> float:
    """Send clips through `servers` servers that share one queue, with `controller.limit` clips in flight.

    Returns the fraction of the second half of the run in which the servers were busy.
    """
    free_s = [0.0] * servers
    in_flight: list[tuple[float, float, int]] = []  # end, start, frames
    now_s = busy_s = half_time_s = 0.0
    for n in range(clips):
        while len(in_flight) < controller.limit:
            frames = 20 + 7 * (len(in_flight) + n) % 90
            begin_s = max(now_s, heapq.heappop(free_s))
            heapq.heappush(free_s, begin_s + frames * frame_s)
            heapq.heappush(in_flight, (begin_s + frames * frame_s, now_s, frames))
        now_s, start_s, frames = heapq.heappop(in_flight)
        controller.record(Clip(frames, 0.0, now_s - start_s))
        if n == clips // 2:
            half_time_s = now_s
        busy_s += frames * frame_s * (n > clips // 2)
    return busy_s / (now_s - half_time_s) / servers


@pytest.mark.parametrize("servers", [1, 2, 8, 16])
def test_limit_keeps_the_servers_busy_with_a_few_clips_queued(servers: int) -> None:
    controller = ConcurrencyController(1, 32, decoders=2)
    assert simulate(controller, servers) > 0.95
    assert servers + 1 <= controller.limit <= servers + 8


def test_limit_follows_servers_that_come_and_go() -> None:
    controller = ConcurrencyController(1, 32, decoders=2)
    for servers, frame_s in ((2, 0.01), (12, 0.01), (2, 0.01), (12, 0.03), (1, 0.001)):
        assert simulate(controller, servers, frame_s) > 0.95
        assert servers + 1 <= controller.limit <= servers + 8


def test_limit_stays_within_its_bounds() -> None:
    controller = ConcurrencyController(1, 32, decoders=2)
    simulate(controller, 1000)
    assert controller.limit == 32
    for _ in range(10):
        controller.record_overload()
    assert controller.limit == 1
    fixed = ConcurrencyController(8, 8, decoders=2)
    simulate(fixed, 1)
    fixed.record_overload()
    assert fixed.limit == 8


def test_report_names_the_bottleneck() -> None:
    controller = ConcurrencyController(4, 4, decoders=2)
    for _ in range(100):
        controller.record(Clip(64, 0.18, 0.02))
    report = controller.report(10.0)
    assert (report.bottleneck, report.decoders_busy, report.clips_under_way) == (
        "decoding", pytest.approx(0.9), pytest.approx(2.0),
    )  # fmt: skip
    assert ConcurrencyController(4, 4, decoders=2).report(10.0).bottleneck == "server"
