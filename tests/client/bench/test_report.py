"""What measured loads say: quantiles, the knee, warnings, JSON and the page."""

import asyncio
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from asl_triton.bench.page import apart, render, scale
from asl_triton.bench.report import Latency, Point, knee, rounded, written
from asl_triton.models.served import ServedModel, read_model
from asl_triton.transport.base import Statistics
from tests.client.loads import levels, report_of, window
from tests.client.served import fake


def test_quantiles_are_latencies_that_were_measured() -> None:
    latency = Latency.of([n / 1000 for n in range(100, 0, -1)])
    assert latency == Latency(mean=pytest.approx(0.0505), p50=0.05, p90=0.09, p95=0.095, p99=0.099, max=0.1)
    assert Latency.of([0.3, 0.1]) == Latency(mean=0.2, p50=0.1, p90=0.3, p95=0.3, p99=0.3, max=0.3)
    assert Latency.of([0.7]) == Latency(*[0.7] * 6)


def closed_system(load: float, service_s: float, instances: int, think_s: float = 0.0) -> Point:
    """The asymptotic bounds of a closed system: throughput rises with the load, then is what the instances give."""
    throughput = min(load / (service_s + think_s), instances / service_s)
    return Point(load, throughput, load / throughput)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([closed_system(n, 0.1, 4) for n in (1, 2, 4, 8, 16)], 4),
        ([closed_system(n, 0.1, 1) for n in (1, 2, 4, 8)], 1),
        ([closed_system(n, 0.1, 3) for n in (1, 2, 4, 8)], 4),  # the first level beyond it
        ([closed_system(n, 0.1, 4, think_s=0.1) for n in (16, 8, 4, 2, 1)], 8),
        ([closed_system(n, 0.1, 64) for n in (1, 2, 4, 8)], None),  # not reached
        ([Point(1, 10, 0.1), Point(2, 10.9, 0.2), Point(4, 11.5, 0.4), Point(8, 11.6, 0.8)], 2),  # bit by bit
        ([Point(1, 10, 0.1), Point(2, 20, 0.1), Point(4, 15, 0.3), Point(8, 12, 0.7)], 2),  # it falls
        ([Point(1, 10, 0.3), Point(2, 10, 0.2), Point(4, 10, 0.4)], 2),  # a longer wait at first
        ([Point(1, 10, 0.1)], None),
        ([], None),
    ],
)
def test_knee_is_where_more_load_only_waits_longer(points: list[Point], expected: float | None) -> None:
    found = knee(points)
    assert (found and found.load) == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.00123, "0.00123"), (1.38, "1.38"), (99.94, "99.9"), (99.96, "100"), (1234.5, "1,234"), (0.0, "0")],
)
def test_figures_are_shown_with_three_digits(value: float, shown: str) -> None:
    assert rounded(value) == shown


@pytest.fixture(scope="module")
def served() -> ServedModel:
    return asyncio.run(read_model(fake()))


def test_report_names_the_knee_or_that_there_is_none(served: ServedModel) -> None:
    report = report_of(levels(10, 18, 18.5, 19), served)
    assert report.knee == Point(2, 18, pytest.approx(2 / 18))
    assert report.knee_told is not None and report.knee_told.startswith("the knee is at 2 in flight, 18 clips a second")
    assert report_of(levels(10, 18, 30), served).knee_told == (
        "no knee up to 4 in flight: throughput still grows; try more"
    )
    assert report_of(levels(10), served).knee_told is None


def test_report_warns_of_what_spoils_its_figures(served: ServedModel) -> None:
    (level,) = levels(10)
    assert report_of([level], served).warnings == ()
    busy = replace(level, windows=tuple(replace(each, client_busy=0.95) for each in level.windows))
    assert "this process computed more than 90 % of the time" in " ".join(report_of([busy], served).warnings)
    for requests in (150, 50, -3):
        counted = window(10, 0.1, server=Statistics(requests, 0, 10, 0.0, 0.0))
        others = replace(level, windows=(counted,) * 3)
        assert "somebody else asks too" in " ".join(report_of([others], served).warnings)


def test_report_is_written_as_json_and_as_one_page(served: ServedModel, tmp_path: Path) -> None:
    model = replace(served, name="<b>signs</b>")
    report = report_of([*levels(10, 18, 18.5), *levels(5, 9, rates=True)], model, stopped="the <i>server</i> went away")
    files = written(report, render(report), tmp_path)
    assert [file.name for file in files] == ["bench.json", "bench.html"]
    found = json.loads(files[0].read_text())
    assert [(level["loop"], level.get("rate", level["in_flight"])) for level in found["levels"]] == [
        ("closed", 1),
        ("closed", 2),
        ("closed", 4),
        ("open", 5),
        ("open", 9),
    ]
    assert found["knee"] == {"load": 2, "throughput": 18.0, "p95_s": pytest.approx(2 / 18)}
    page = files[1].read_text()
    assert page.count("<svg") == 4 and "nan" not in page.lower() and "http" not in page
    assert "<b>" not in page and "<i>" not in page and "the &lt;i&gt;server&lt;/i&gt; went away" in page


def test_one_load_has_a_page_without_plots(served: ServedModel) -> None:
    assert "<svg" not in render(report_of(levels(10), served))


@pytest.mark.parametrize(
    ("greatest", "step", "highest"), [(1.83, 0.5, 2.0), (18.5, 5, 20), (6252, 2000, 8000), (0.004, 0.001, 0.004)]
)
def test_axes_have_round_ticks(greatest: float, step: float, highest: float) -> None:
    assert scale(greatest) == pytest.approx((step, highest))


def test_names_of_lines_do_not_stand_on_each_other() -> None:
    heights = apart([100, 98, 97, 20])
    assert heights[0] == 100 and heights[3] == 20
    assert [below - above for below, above in pairwise(heights[:3])] == [16, 16]
    assert apart([9, 9, 9]) == [32, 16, 0]  # and none leaves the plot
