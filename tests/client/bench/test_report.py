"""Reports on measured loads: quantiles, the knee, warnings, JSON and the page."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from asl_triton.bench.page import draw_plot, render_page
from asl_triton.bench.report import Latency, Point, Report, find_knee, format_number
from asl_triton.models.served import ServedModel, read_model
from tests.client.loads import levels, report_of, window
from tests.client.served import fake


def test_quantiles_are_measured_latencies() -> None:
    latency = Latency.of([n / 1000 for n in range(100, 0, -1)])
    assert latency == Latency(mean=pytest.approx(0.0505), p50=0.05, p90=0.09, p95=0.095, p99=0.099, max=0.1)
    assert Latency.of([0.3, 0.1]) == Latency(mean=0.2, p50=0.1, p90=0.3, p95=0.3, p99=0.3, max=0.3)
    assert Latency.of([0.7]) == Latency(*[0.7] * 6)


def compute_closed_system(load: float, service_s: float, instances: int, think_s: float = 0.0) -> Point:
    """Asymptotic bounds of a closed system: throughput rises with the load until all instances are busy."""
    throughput = min(load / (service_s + think_s), instances / service_s)
    return Point(load, throughput, load / throughput)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([compute_closed_system(n, 0.1, 4) for n in (1, 2, 4, 8, 16)], 4),
        ([compute_closed_system(n, 0.1, 1) for n in (1, 2, 4, 8)], 1),
        ([compute_closed_system(n, 0.1, 3) for n in (1, 2, 4, 8)], 4),  # the first level above it
        ([compute_closed_system(n, 0.1, 4, think_s=0.1) for n in (16, 8, 4, 2, 1)], 8),
        ([compute_closed_system(n, 0.1, 64) for n in (1, 2, 4, 8)], None),  # not reached
        ([Point(1, 10, 0.1), Point(2, 10.9, 0.2), Point(4, 11.5, 0.4), Point(8, 11.6, 0.8)], 2),  # gradual
        ([Point(1, 10, 0.1), Point(2, 20, 0.1), Point(4, 15, 0.3), Point(8, 12, 0.7)], 2),  # throughput falls
        ([Point(1, 10, 0.3), Point(2, 10, 0.2), Point(4, 10, 0.4)], 2),  # higher latency at first
        ([Point(1, 10, 0.1)], None),
        ([], None),
    ],
)
def test_knee_is_where_more_load_only_adds_waiting(points: list[Point], expected: float | None) -> None:
    found = find_knee(points)
    assert (found and found.load) == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.00123, "0.00123"), (1.38, "1.38"), (99.94, "99.9"), (99.96, "100"), (1234.5, "1,234"), (0.0, "0")],
)
def test_figures_are_shown_with_three_digits(value: float, shown: str) -> None:
    assert format_number(value) == shown


@pytest.fixture(scope="module")
def served() -> ServedModel:
    return asyncio.run(read_model(fake()))


def test_report_names_the_knee_or_says_that_there_is_none(served: ServedModel) -> None:
    report = report_of(levels(10, 18, 18.5, 19), served)
    assert report.knee == Point(2, 18, pytest.approx(2 / 18))
    assert report.knee_sentence is not None and report.knee_sentence.startswith(
        "the knee is at 2 in flight, 18 clips per second"
    )
    assert report_of(levels(10, 18, 30), served).knee_sentence == (
        "no knee up to 4 in flight: throughput still grows; try more"
    )
    assert report_of(levels(10), served).knee_sentence is None


def test_report_warns_when_its_figures_are_unreliable(served: ServedModel) -> None:
    (level,) = levels(10)
    assert report_of([level], served).warnings == ()
    busy = replace(level, windows=(window(10, 0.1, busy_s=9.5),) * 3)
    assert "this process was busy more than 90 % of the time" in " ".join(report_of([busy], served).warnings)
    for requests in (150, 50, -3):
        others = replace(level, windows=(window(10, 0.1, requests=requests, executions=10),) * 3)
        assert "it has other clients" in " ".join(report_of([others], served).warnings)


def make_full_report(model: ServedModel) -> Report:
    """Make a report that has it all: both loops, a failure, clips that were not started, and an early end."""
    closed, open_ = levels(10, 18, 18.5), levels(5, 9, rates=True)
    closed[2] = replace(closed[2], errors={"the queue is full": 3})
    late = tuple(replace(window, not_started=2) for window in open_[1].windows)
    open_[1] = replace(open_[1], windows=late, stable=False)
    return report_of([*closed, *open_], model, stopped="no server answers")


def test_json_is_the_same_as_in_earlier_versions(served: ServedModel) -> None:
    found = json.loads(json.dumps(make_full_report(served).as_json()))
    before = json.loads((Path(__file__).parent / "bench_before.json").read_text())
    assert len(found.pop("warnings")) == len(before.pop("warnings")) == 2
    for level, level_before in zip(found["levels"], before["levels"], strict=True):
        assert level.pop("latency_s") == pytest.approx(level_before.pop("latency_s"))
        assert level.pop("client_busy") == pytest.approx(level_before.pop("client_busy"))
    assert found == before


def test_page_is_self_contained_and_escapes_outside_text(served: ServedModel) -> None:
    model = replace(served, name="<b>signs</b>")
    page = render_page(replace(make_full_report(model), stopped="the <i>server</i> went away"))
    assert page.count("<svg") == 4 and "nan" not in page.lower() and "http" not in page and "<script" not in page
    assert "<b>" not in page and "<i>" not in page and "the &lt;i&gt;server&lt;/i&gt; went away" in page


def test_plots_show_throughput_and_percentiles_over_load(served: ServedModel) -> None:
    plots = re.findall(r"<svg.*?</svg>", render_page(make_full_report(served)), re.DOTALL)
    assert [find_texts(plot, "title plot_title") + find_texts(plot, "title") for plot in plots] == [
        ["Throughput", "clips in flight", "clips answered per second"],
        ["Latency", "clips in flight", "milliseconds"],
        ["Throughput", "clips due per second", "clips answered per second"],
        ["Latency", "clips due per second", "milliseconds"],
    ]
    assert "p95: 111 milliseconds with 2 clips in flight" in plots[1]
    assert re.findall(r"<title>(p\d+|answered|due): ", plots[1]) == [
        p for p in ("p50", "p90", "p95", "p99") for _ in "124"
    ]
    assert re.findall(r"<title>(p\d+|answered|due): ", plots[2]) == ["answered", "answered", "due", "due"]


def find_texts(plot: str, kind: str) -> list[str]:
    """Find the texts of one CSS class in an SVG."""
    return re.findall(rf'<text[^>]*class="{kind}"[^>]*>([^<]*)</text>', plot)


@pytest.mark.parametrize(
    ("loads", "knee", "shown"),
    [
        ([1, 2, 4, 8], None, ["1", "2", "4", "8"]),
        ([1, 2, 4, 8], 4, ["1", "2", "4", "8"]),
        (list(range(1, 26)), 3, ["1", "3", "5", "7", "9", "11", "13", "15", "17", "19", "21", "23", "25"]),
        (
            [1000.25, 2000.5, 3000.75, 4000, 5000.25, 6000.5, 7000.75],
            None,
            ["1000.25", "3000.75", "5000.25", "7000.75"],
        ),
    ],
)
def test_labels_of_loads_do_not_overlap(loads: list[float], knee: float | None, shown: list[str]) -> None:
    plot = draw_plot("Throughput", "clips", "in flight", loads, {"answered": [float(load) for load in loads]}, knee)
    axis = plot[plot.index('class="axis x') : plot.index('class="titles')]
    assert [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", axis) if text] == shown
    assert axis.count("major guide") == (knee is not None)


def test_page_of_a_single_load_has_no_plots(served: ServedModel) -> None:
    assert "<svg" not in render_page(report_of(levels(10), served))
