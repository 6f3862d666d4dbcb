"""The best glosses' confidence over a clip's seconds, as a Plotly figure that Gradio draws.

The figure is built as Plotly JSON (https://plotly.com/javascript/reference/) because the validation in Plotly's Python
package takes longer than the answer may. The style sheet sets the color of its text.
"""

import json
from collections.abc import Sequence
from typing import Any

from gradio.components.plot import PlotData

from asl_triton.results import Curve

# The colors differ in lightness and hue, with a contrast of 3 : 1 on white and on black. Each line also has its own
# dash and marker.
LOOKS = (
    ("#1f8a94", "solid", "circle"),
    ("#c2631a", "dash", "square"),
    ("#7a63d2", "dot", "diamond"),
    ("#c04a76", "dashdot", "triangle-up"),
    ("#6f7a33", "longdash", "x"),
)
THRESHOLD_COLOR = "#808a8e"
AXIS = {"gridcolor": "rgba(128, 138, 142, 0.28)", "zeroline": False, "fixedrange": True}
HEIGHT = 300  # pixels


def plot_timeline(curves: Sequence[Curve], duration_s: float, threshold: float) -> PlotData:
    """Plot one line per gloss, its confidence at the middle of each step, and the threshold if it is above 0."""
    figure = {
        "data": [make_line(curve, *look) for curve, look in zip(curves, LOOKS, strict=False)],
        "layout": make_layout(duration_s, threshold),
        "config": {"displayModeBar": False, "displaylogo": False, "scrollZoom": False},
    }
    return PlotData(type="plotly", plot=json.dumps(figure))


def make_line(curve: Curve, color: str, dash: str, mark: str) -> dict[str, Any]:
    """Return one gloss's line."""
    return {
        "type": "scatter",
        "x": [round(float(time_s), 3) for time_s in curve.times_s],
        "y": [round(float(confidence), 4) for confidence in curve.confidences],
        "name": curve.gloss,
        "mode": "lines+markers",
        "line": {"color": color, "dash": dash, "width": 2.5},
        "marker": {"symbol": mark, "size": 8},
        "hovertemplate": "%{y:.1%}",
    }


def make_layout(duration_s: float, threshold: float) -> dict[str, Any]:
    """Return the axes, the legend, and the threshold's line."""
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": threshold, "y1": threshold}
    line = {**across, "line": {"color": THRESHOLD_COLOR, "width": 1.5, "dash": "4px,4px"}}
    clear = "rgba(0,0,0,0)"
    return {
        "height": HEIGHT,
        "margin": {"l": 48, "r": 12, "t": 8, "b": 40},
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 14}},
        "showlegend": True,
        "hovermode": "x unified",
        "dragmode": False,
        "xaxis": {**AXIS, "title": {"text": "seconds"}, "range": [0, max(duration_s, 0.1)], "hoverformat": ".2f"},
        "yaxis": {**AXIS, "range": [-0.03, 1.03], "tickformat": ".0%", "dtick": 0.25},
        "shapes": [line] if threshold else [],
    }
