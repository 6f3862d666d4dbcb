"""How many clips are under way at once, on a simulated server."""

import heapq
from dataclasses import dataclass

import pytest

from asl_triton.batch.concurrency import ConcurrencyController


@dataclass
class Clip:
    num_frames: int
    decode_s: float
    wait_s: float


def settle(controller: ConcurrencyController, servers: int, frame_s: float = 0.01, clips: int = 4000) -> float:
    """Clips through so many servers with one queue before them, as many under way as `controller` says: the servers'
    share of time that they worked in the second half."""
    free_s = [0.0] * servers
    under_way: list[tuple[float, float, int]] = []  # end, start, frames
    now_s = worked_s = half_s = 0.0
    for n in range(clips):
        while len(under_way) < controller.limit:
            frames = 20 + 7 * (len(under_way) + n) % 90
            begin_s = max(now_s, heapq.heappop(free_s))
            heapq.heappush(free_s, begin_s + frames * frame_s)
            heapq.heappush(under_way, (begin_s + frames * frame_s, now_s, frames))
        now_s, start_s, frames = heapq.heappop(under_way)
        controller.record(Clip(frames, 0.0, now_s - start_s))
        if n == clips // 2:
            half_s = now_s
        worked_s += frames * frame_s * (n > clips // 2)
    return worked_s / (now_s - half_s) / servers


@pytest.mark.parametrize("servers", [1, 2, 8, 16])
def test_limit_finds_what_keeps_the_servers_busy_with_a_few_that_wait(servers: int) -> None:
    controller = ConcurrencyController(1, 32, decoders=2)
    assert settle(controller, servers) > 0.95
    assert servers + 1 <= controller.limit <= servers + 8


def test_limit_follows_servers_that_come_and_go() -> None:
    controller = ConcurrencyController(1, 32, decoders=2)
    for servers, frame_s in ((2, 0.01), (12, 0.01), (2, 0.01), (12, 0.03), (1, 0.001)):
        assert settle(controller, servers, frame_s) > 0.95
        assert servers + 1 <= controller.limit <= servers + 8


def test_limit_stays_within_its_bounds() -> None:
    controller = ConcurrencyController(1, 32, decoders=2)
    settle(controller, 1000)
    assert controller.limit == 32
    for _ in range(10):
        controller.record_overload()
    assert controller.limit == 1
    fixed = ConcurrencyController(8, 8, decoders=2)
    settle(fixed, 1)
    fixed.record_overload()
    assert fixed.limit == 8


def test_report_says_what_was_busy() -> None:
    controller = ConcurrencyController(4, 4, decoders=2)
    for _ in range(100):
        controller.record(Clip(64, 0.18, 0.02))
    report = controller.report(10.0)
    assert (report.bottleneck, report.decoders_busy, report.clips_under_way) == (
        "decoding", pytest.approx(0.9), pytest.approx(2.0),
    )  # fmt: skip
    assert ConcurrencyController(4, 4, decoders=2).report(10.0).bottleneck == "server"
