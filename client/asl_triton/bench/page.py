"""Renders measured loads as a self-contained HTML page with plots, without scripts, for light and dark mode."""

import math
import re
import sys
from collections.abc import Mapping, Sequence

import pygal
from markupsafe import Markup
from pygal.style import Style

from asl_triton.bench.load import OpenLoop
from asl_triton.bench.report import Report, format_number
from asl_triton.writers.html import load_templates, render_template

# pygal's hook for its map plugins turns every failed import into a warning: https://github.com/Kozea/pygal/pull/532
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]

LINE = "var(--line)"
STYLE = Style(  # the page's colors follow light and dark mode; the lines' colors are readable in both
    background="none",
    plot_background="none",
    foreground="var(--soft)",
    foreground_strong="var(--ink)",
    foreground_subtle=LINE,
    guide_stroke_color=LINE,
    major_guide_stroke_color=LINE,
    guide_stroke_dasharray="none",
    colors=("#1f8a94", "#c2631a", "#7a63d2", "#c04a76"),
    font_family="system-ui, sans-serif",
    label_font_size=14,
    major_label_font_size=14,
    legend_font_size=14,
    title_font_size=14,
    stroke_width=2,
    opacity=1,
    stroke_opacity=1,
)
DASHES = ("none", "8 3", "2 3", "8 3 2 3")
CHARACTERS = 50  # that fit along an axis
NOT_FOR_A_PAGE = re.compile(r'<!--.*?-->|<script.*?</script>| xmlns\S*="[^"]*"', re.DOTALL)


def render_page(report: Report) -> str:
    """Render the page. Model names and errors come from outside, so the template escapes all values."""
    load_templates().filters["number"] = format_number
    return render_template("bench.html", report=report, plots=draw_plots(report))


def draw_plots(report: Report) -> list[Markup]:
    """Plot throughput and latency over clips in flight and over the rate, if there are at least two loads of a kind."""
    plots = []
    opened = [level for level in report.levels if isinstance(level.loop, OpenLoop)]
    for x_title, levels in (("clips in flight", report.closed), ("clips due per second", opened)):
        if len(levels) < 2:
            continue
        loads = [getattr(level.loop, "rate", level.loop.in_flight) for level in levels]
        knee = report.knee.load if report.knee and levels is not opened else None
        throughput = {
            "answered": [level.throughput for level in levels],
            **({"due": loads} if levels is opened else {}),
        }
        names = ("p50", "p90", "p95", "p99")
        latency_ms = {name: [1000 * getattr(level.latency_s, name) for level in levels] for name in names}
        plots.append(draw_plot("Throughput", "clips answered per second", x_title, loads, throughput, knee))
        plots.append(draw_plot("Latency", "milliseconds", x_title, loads, latency_ms, knee))
    return plots


def draw_plot(
    title: str,
    y_title: str,
    x_title: str,
    loads: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    knee: float | None,
) -> Markup:
    """Draw lines over evenly spaced loads, as SVG. A dashed line marks the knee."""
    chart = pygal.Line(
        style=STYLE,
        width=520,
        height=360,
        margin=10,
        js=(),
        title=title,
        x_title=x_title,
        y_title=y_title,
        include_x_axis=True,
        max_scale=6,
        dots_size=4,
        show_legend=len(lines) > 1,
        legend_at_bottom=True,
        legend_at_bottom_columns=len(lines),
        truncate_label=-1,
        value_formatter=lambda value: f"{value:,.6g}",
        disable_xml_declaration=True,
    )
    labels = [f"{load:g}" for load in loads]
    every = math.ceil(sum(len(label) + 2 for label in labels) / CHARACTERS)
    first = loads.index(knee) if knee in loads else 0
    chart.x_labels = [label if (place - first) % every == 0 else "" for place, label in enumerate(labels)]
    chart.x_labels_major = [labels[first]] if knee in loads else []
    for (name, values), dash in zip(lines.items(), DASHES, strict=False):
        points = [
            {"value": value, "tooltip": f"{name}: {format_number(value)} {y_title} with {label} {x_title}"}
            for value, label in zip(values, labels, strict=True)
        ]
        chart.add(name, points, stroke_style={"dasharray": dash})
    return Markup(NOT_FOR_A_PAGE.sub("", chart.render()))
