"""Answers as files to download. Each link contains its file, so nothing is kept on the server."""

from collections.abc import Sequence
from pathlib import PurePath

from asl_triton.live.state import LiveEvent
from asl_triton.results import Outcome, Recognition, Segment
from asl_triton.writers.text import format_csv, format_json, format_recognition_json, format_vtt
from asl_triton.writers.timelines import format_webvtt
from asl_triton_ui.rendering import format_clock, make_data_uri, render
from asl_triton_ui.result_view import DisplayedResult, apply_threshold

TYPES = {
    "csv": ("CSV", "text/csv"),
    "json": ("JSON", "application/json"),
    "txt": ("Text", "text/plain"),
    "vtt": ("WebVTT", "text/vtt"),
}
LEAST_CONFIDENCE = 0.01  # of a cue, if the threshold is 0


def write_downloads(shown: DisplayedResult, threshold: float) -> str:
    """Return links to one clip's answer as HTML."""
    recognition = apply_threshold(shown.recognition, threshold)
    stem = PurePath(recognition.video).stem
    return render_links(
        "Download the answer",
        stem,
        csv=format_csv([recognition]),
        json=format_recognition_json(recognition, shown.curves),
        vtt=format_vtt(recognition, shown.curves, max(threshold, LEAST_CONFIDENCE)),
    )


def write_batch_downloads(outcomes: Sequence[Outcome]) -> str:
    """Return links to the answers for several clips as HTML. The JSON file includes failures."""
    recognized = [outcome for outcome in outcomes if isinstance(outcome, Recognition)]
    return (
        render_links("Download all", "results", csv=format_csv(recognized), json=format_json(outcomes))
        if outcomes
        else ""
    )


def write_live_downloads(signs: Sequence[LiveEvent], model: str) -> str:
    """Return links to the live transcript as HTML, with a button that copies its text."""
    if not signs:
        return ""
    text = "".join(f"{format_clock(sign.start_s)} {sign.gloss}\n" for sign in signs)
    segments = [
        Segment(sign.gloss, sign.class_id, sign.start_s, sign.end_s, sign.confidence, sign.start_s) for sign in signs
    ]
    in_order = sorted(segments, key=lambda segment: segment.start_s)
    files = render_links(
        "Download the transcript", "transcript", txt=text, vtt=format_webvtt(in_order, f"{model}: live")
    )
    return files + render("copy.html", text=text)


def render_links(title: str, stem: str, **texts: str) -> str:
    """Render one link per format."""
    files = [
        {
            "name": f"{stem}.{suffix}",
            "label": TYPES[suffix][0],
            "address": make_data_uri(TYPES[suffix][1], text.encode()),
        }
        for suffix, text in texts.items()
    ]
    return render("downloads.html", title=title, files=files, id=f"downloads-{title.split()[-1]}")
