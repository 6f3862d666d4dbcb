"""What the page shows for a clip: its progress, then its curves and the frames around the peak."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gradio.components.plot import PlotData

from asl_triton.recognizer.pipeline import ClipPipeline
from asl_triton.results import Curve, Recognition
from asl_triton.video.preprocessing import Crop
from asl_triton_ui import plots
from asl_triton_ui.rendering import FILM_HEIGHT, encode_picture, format_count, render
from asl_triton_ui.state.request_queue import RequestQueue, Ticket

FILM_FRAMES = 7
FILM_SPACING_S = 0.16


@dataclass(frozen=True)
class DisplayedResult:
    """The answer on a visitor's page, kept for the session so that it can be shown again with another threshold."""

    path: Path
    recognition: Recognition
    curves: tuple[Curve, ...]

    @property
    def peak_s(self) -> float:
        """When the best gloss has its highest confidence, in seconds."""
        best = self.curves[0]
        return float(best.times_s[int(np.argmax(best.confidences))])

    @property
    def film_times_s(self) -> list[float]:
        """The times of the filmstrip's frames, in seconds."""
        return choose_film_times(self.peak_s, self.recognition.duration_s)


class Progress:
    """A clip's progress while its visitor waits for the answer."""

    def __init__(self, turns: RequestQueue) -> None:
        self.ticket = Ticket()
        self._turns = turns
        self._inquiry: ClipPipeline | None = None

    def started(self, inquiry: ClipPipeline) -> None:
        """Follow the clip's pipeline from now on; called when decoding starts."""
        self._inquiry = inquiry

    def html(self) -> str:
        """Render the progress."""
        if self._inquiry is None:
            ahead = self._turns.ahead(self.ticket)
            detail = "" if not ahead else f"{format_count(ahead, 'clip')} ahead of yours"
            what = "Waiting for its turn" if ahead is not None else "Opening the clip"
            return render("progress.html", what=what, detail=detail, share=None)
        video = self._inquiry.video
        read, declared = video.num_frames, video.measures.declared_frames
        if declared and read >= declared:
            return render(
                "progress.html", what="Waiting for the server", detail=f"{format_count(read, 'frame')} read", share=None
            )
        of = f" of about {declared:,}" if declared else ""
        windows = self._inquiry.num_windows
        answered = f", {format_count(windows, 'window')} answered" if windows else ""
        share = min(read / declared, 1) if declared else None
        return render("progress.html", what="Reading the clip", detail=f"{read:,}{of} frames{answered}", share=share)


def apply_threshold(recognition: Recognition, threshold: float) -> Recognition:
    """Return the recognition with `unsure` set by the page's threshold.

    With a threshold of 0, `unsure` stays None if the model has no threshold of its own.
    """
    if not threshold and recognition.unsure is None:
        return recognition
    return dataclasses.replace(recognition, unsure=recognition.confidence < threshold)


def make_plot(shown: DisplayedResult, threshold: float) -> PlotData:
    """Plot the curves over the clip's seconds."""
    return plots.plot_timeline(shown.curves, shown.recognition.duration_s, threshold)


def choose_film_times(peak_s: float, duration_s: float) -> list[float]:
    """Return ascending times in seconds around a peak, within the clip; the peak is one of them."""
    half = FILM_FRAMES // 2
    times_s = [peak_s + FILM_SPACING_S * place for place in range(-half, half + 1)]
    return [time_s for time_s in times_s if 0 <= time_s < duration_s]


def render_film(shown: DisplayedResult, crops: Sequence[Crop]) -> str:
    """Render what the network saw around the peak, and a table of the peaks of all curves.

    `crops` are those at `film_times_s`, or empty if the clip was deleted.
    """
    pictures = [encode_picture(crop.image[..., ::-1], FILM_HEIGHT) for crop in crops]
    return render(
        "film.html",
        gloss=shown.recognition.gloss,
        height=FILM_HEIGHT,
        frames=[
            {"time_s": time_s, "picture": address, "is_peak": time_s == shown.peak_s}
            for time_s, address in zip(shown.film_times_s, pictures, strict=False)
        ],
        peaks=[find_peak(curve) for curve in shown.curves],
    )


def find_peak(curve: Curve) -> dict[str, Any]:
    """Return a gloss's highest confidence and its time in seconds."""
    at = int(np.argmax(curve.confidences))
    return {"gloss": curve.gloss, "confidence": float(curve.confidences[at]), "time_s": float(curve.times_s[at])}
