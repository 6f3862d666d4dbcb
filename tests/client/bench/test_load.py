"""Loads in virtual time: requests in flight, counts, latencies and stability."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from asl_triton.bench.load import ClosedLoop, Loop, OpenLoop, summarize_error
from asl_triton.bench.measurement import Level, is_stable, measure, measure_all, open_source
from asl_triton.bench.report import Figures, Rules
from asl_triton.errors import AslTritonError, ServerError
from asl_triton.transport.base import Array, Statistics
from asl_triton.transport.fake import FakeTransport
from tests.client import virtual_time
from tests.client.loads import RULES, report_of, window
from tests.client.served import Gauge, fake, faking
from tests.client.virtual_time import now_s


@dataclass
class Server(FakeTransport):
    """Answers after `service_s`, `instances` at a time. Refuses requests whose number (from 1) is in `refused`."""

    service_s: float = 0.1
    instances: int = 1
    refused: Sequence[int] = ()
    arrivals_s: list[float] = field(default_factory=list)
    in_flight: int = 0
    max_in_flight: int = 0
    answered: int = 0
    queue_s: float = 0.0

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.instances)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        arrival_s = now_s()
        self.arrivals_s.append(arrival_s)
        if len(self.arrivals_s) in self.refused:
            raise ServerError("the queue is full (request 0123abcd): wait. Or add servers")
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            async with self._free:
                self.queue_s += now_s() - arrival_s
                await asyncio.sleep(self.service_s)
        finally:
            self.in_flight -= 1
        self.answered += 1
        return {name: self.answer(model, inputs)[name] for name in outputs}

    async def statistics(self, model: str) -> Statistics:
        await asyncio.sleep(0.001)
        return Statistics(self.answered, 0, self.answered, self.queue_s, self.service_s * self.answered)


def make_server(service_s: float, instances: int = 1, refused: Sequence[int] = ()) -> Server:
    """Make a server with one model, `signs`."""
    like = fake()
    return Server(like.models, like.labels, like.answer, service_s=service_s, instances=instances, refused=refused)


async def measure_on(server: Server, loop: Loop, rules: Rules = RULES) -> Level:
    """Measure a load of random frames by the running loop's clock."""
    async with open_source(server, None, num_frames=9) as source:
        return await measure(loop, source, rules, clock=now_s)


def run_load(loop: Loop, server: Server, rules: Rules = RULES) -> tuple[Level, Figures]:
    """Measure a load in virtual time."""
    level = virtual_time.run(measure_on(server, loop, rules))
    return level, level.summarize()


@pytest.mark.parametrize(("in_flight", "instances"), [(1, 1), (3, 1), (8, 2), (2, 4)])
def test_closed_loop_keeps_its_number_in_flight(in_flight: int, instances: int) -> None:
    server = make_server(0.5, instances)
    level, figures = run_load(ClosedLoop(in_flight), server)
    assert server.max_in_flight == in_flight
    assert server.in_flight == 0  # none is left over
    busy = min(in_flight, instances)
    assert figures.throughput == pytest.approx(busy / 0.5)
    assert figures.latency_s.p50 == pytest.approx(0.5 * in_flight / busy)
    assert (level.stable, len(level.windows), figures.failed) == (True, 3, 0)


def test_figures_exclude_the_warm_up() -> None:
    server = make_server(0.25)
    level, figures = run_load(ClosedLoop(1), server)
    assert sum(window.seconds for window in level.windows) == pytest.approx(30, abs=0.5)
    assert figures.answered == sum(len(window.requests) for window in level.windows) == figures.server.requests
    assert server.answered >= figures.answered + 4  # one second of warm-up at four per second
    assert (figures.sent_bytes, figures.received_bytes) == (9 * 224 * 224 * 3, 6 * 4)
    assert (figures.server.queue_s, figures.server.compute_s) == pytest.approx((0.0, 0.25))


def test_slow_server_gets_windows_long_enough_to_measure_a_rate() -> None:
    level, figures = run_load(ClosedLoop(4), make_server(2.0), Rules(window_s=0.5, warm_up_s=0.0))
    assert all(len(window.requests) >= 16 for window in level.windows)
    assert figures.throughput == pytest.approx(0.5, rel=0.01)


def test_open_loop_starts_on_schedule_even_if_answers_are_late() -> None:
    server = make_server(service_s=3.0, instances=100)
    _, figures = run_load(OpenLoop(rate=4.0, in_flight=50), server)
    assert np.diff(server.arrivals_s) == pytest.approx(0.25)
    assert server.max_in_flight == 12
    assert figures.latency_s.p50 == pytest.approx(3.0)
    assert (figures.throughput, figures.not_started) == (pytest.approx(4.0), 0)


def test_poisson_arrivals_match_the_rate_and_are_reproducible() -> None:
    servers = [make_server(0.01, instances=100), make_server(0.01, instances=100)]
    for server in servers:
        run_load(OpenLoop(rate=20.0, arrivals="poisson"), server, replace(RULES, window_s=50.0))
    assert servers[0].arrivals_s == servers[1].arrivals_s
    gaps_s = np.diff(servers[0].arrivals_s)
    assert gaps_s.mean() == pytest.approx(1 / 20, rel=0.1)
    assert gaps_s.std() == pytest.approx(1 / 20, rel=0.15)  # equals the mean in an exponential distribution


def test_latency_counts_from_the_time_a_clip_was_due() -> None:
    server = make_server(0.01)

    async def run() -> Level:
        measurement = asyncio.create_task(measure_on(server, OpenLoop(rate=10.0, in_flight=100)))
        await asyncio.sleep(12.05)
        asyncio.get_running_loop().leaping.now_s += 2.0  # type: ignore[attr-defined]  # a client that hangs
        return await measurement

    level = virtual_time.run(run())
    late_s = sorted(latency_s for window in level.windows for latency_s in window.latencies_s)[-20:]
    assert late_s[-1] > 1.9
    assert np.diff(late_s[4:]).mean() == pytest.approx(0.09, abs=0.02)  # each waited for those due before it
    requests = [request for window in level.windows for request in window.requests]
    assert max(r.ended_s - r.started_s for r in requests) < 0.3  # counted from the late starts, nothing would show


def test_clips_that_cannot_start_are_counted() -> None:
    server = make_server(1.0)
    level, figures = run_load(OpenLoop(rate=5.0, in_flight=8), server)
    assert server.max_in_flight == 8
    assert figures.throughput == pytest.approx(1.0)
    assert figures.latency_s.p50 == pytest.approx(8.0, abs=1.0)
    assert figures.not_started == pytest.approx(4 * figures.seconds, abs=5)
    assert "some clips were not started" in " ".join(report_of([level], None).warnings)


def test_errors_are_counted_by_reason_and_the_load_continues() -> None:
    server = make_server(0.1, refused=range(5, 10_000, 10))
    level, figures = run_load(ClosedLoop(2), server)
    reasons = dict(level.errors)
    assert set(reasons) == {"the queue is full: wait"}
    num_refused = sum(n <= len(server.arrivals_s) for n in server.refused)
    assert figures.failed == reasons["the queue is full: wait"] == num_refused
    assert figures.answered == sum(request.error is None for window in level.measured for request in window.requests)


def test_level_ends_when_the_server_stops_answering() -> None:
    server = make_server(0.1, refused=range(150, 100_000))
    level, figures = run_load(ClosedLoop(2), server)
    assert not level.stable and not level.windows[-1].latencies_s
    assert len(server.arrivals_s) < 500  # refused at once, but not flooded
    assert figures.answered > 100


def test_reason_is_the_first_sentence_without_the_request_id() -> None:
    error = ServerError("signs on host:8001 is too busy (request 00ff): queue size. Try again later, or add servers")
    assert summarize_error(error) == "signs on host:8001 is too busy: queue size"


def test_load_that_never_settles_is_not_stable() -> None:
    server = make_server(0.1)

    async def run() -> Level:
        async def slow_down() -> None:
            while True:
                await asyncio.sleep(5)
                server.service_s *= 1.3

        slowdown = asyncio.create_task(slow_down())
        try:
            return await measure_on(server, ClosedLoop(1), replace(RULES, max_windows=5))
        finally:
            slowdown.cancel()

    level = virtual_time.run(run())
    assert (level.stable, len(level.windows)) == (False, 5)
    assert "no three windows agreed within 10 % with 1 in flight" in " ".join(report_of([level], None).warnings)


@pytest.mark.parametrize(
    ("windows", "stable"),
    [
        ([(10, 0.1), (10, 0.1)], False),  # needs three
        ([(10, 0.1), (10, 0.1), (10, 0.1)], True),
        ([(10, 0.1), (10.5, 0.105), (10.9, 0.109)], True),  # within 10%
        ([(10, 0.1), (10, 0.1), (11.2, 0.1)], False),
        ([(10, 0.1), (10, 0.1), (10, 0.112)], False),
        ([(30, 0.5), (10, 0.1), (10, 0.1), (10, 0.1)], True),  # the last three
        ([(10, 0.1), (10, 0.1), (0, 0.1)], False),
    ],
)
def test_stable_means_three_windows_with_similar_throughput_and_latency(
    windows: list[tuple[float, float]], stable: bool
) -> None:
    assert is_stable([window(*each) for each in windows], 0.10) is stable


@pytest.mark.parametrize(
    ("datatype", "shape", "sent"), [("UINT8", (1, 64, 224, 224, 3), 1), ("FP32", (1, 3, 64, 224, 224), 4)]
)
def test_frames_are_sent_in_the_format_of_the_model(datatype: str, shape: tuple[int, ...], sent: int) -> None:
    transport = fake(datatype=datatype)

    async def run() -> None:
        async with open_source(transport, None, num_frames=64) as source:
            for _ in range(3):
                await source.send()
            counts = await source.count()
        assert (counts.answers, counts.sent_bytes) == (3, 3 * 64 * 224 * 224 * 3 * sent)
        assert counts.received_bytes == 3 * 6 * 4

    asyncio.run(run())
    assert [call[1]["FRAMES__0"] for call in transport.calls] == [shape] * 3


@pytest.mark.parametrize("num_frames", [8, 301])
def test_number_of_frames_out_of_range_is_a_clear_error(num_frames: int) -> None:
    with pytest.raises(AslTritonError, match="signs accepts 9 to 300 frames per request"):
        measure_all(lambda: open_source(fake(), None, num_frames=num_frames), [ClosedLoop(1)], RULES)


def test_fake_server_never_sees_more_in_flight_than_the_level() -> None:
    gauge = faking(Gauge)
    rules = Rules(window_s=0.1, warm_up_s=0.0, max_windows=3)
    report = measure_all(lambda: open_source(gauge, None, num_frames=9), [ClosedLoop(2), ClosedLoop(5)], rules)
    assert [level.loop for level in report.levels] == [ClosedLoop(2), ClosedLoop(5)]
    assert isinstance(gauge, Gauge) and gauge.most_at_once == 5
    assert report.stopped is None


class DyingServer(FakeTransport):
    """A server that reports its statistics `reports_left` times and is down afterwards."""

    reports_left = 0

    async def statistics(self, model: str) -> Statistics:
        self.reports_left -= 1
        if self.reports_left < 0:
            raise ServerError("no server answers")
        return await super().statistics(model)


def test_measurements_are_kept_when_the_server_goes_away() -> None:
    rules = Rules(window_s=0.1, warm_up_s=0.0, max_windows=3)
    loops = [ClosedLoop(1), ClosedLoop(2)]
    server = faking(DyingServer)
    assert isinstance(server, DyingServer)
    # Level 1: two reports around the warm-up, and three windows. Level 2: again two, and one window.
    server.reports_left = 8
    report = measure_all(lambda: open_source(server, None, num_frames=9), loops, replace(rules, stable=1e-9))
    assert [level.windows for level in report.levels] == [3, 1]
    assert report.stopped == "no server answers"
    server.reports_left = 2
    with pytest.raises(ServerError, match="no server answers"):
        measure_all(lambda: open_source(server, None, num_frames=9), loops, rules)
