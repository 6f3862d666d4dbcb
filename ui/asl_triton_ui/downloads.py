"""Answers as files to download. A link holds its file's content itself: nothing of it is kept on the server."""

from collections.abc import Sequence
from pathlib import PurePath

from asl_triton.live.state import LiveEvent
from asl_triton.results import Outcome, Recognition, Segment
from asl_triton.writers.text import csv_text, json_text, json_text_of, vtt_text
from asl_triton.writers.timelines import webvtt
from asl_triton_ui.rendering import clock, data_uri, render
from asl_triton_ui.result_view import Shown, with_threshold

TYPES = {
    "csv": ("CSV", "text/csv"),
    "json": ("JSON", "application/json"),
    "txt": ("Text", "text/plain"),
    "vtt": ("WebVTT", "text/vtt"),
}
LEAST_CONFIDENCE = 0.01  # of a cue, where the threshold is 0


def downloads_of(shown: Shown, threshold: float) -> str:
    """Links to one clip's answer."""
    recognition = with_threshold(shown.recognition, threshold)
    stem = PurePath(recognition.video).stem
    return links(
        "Download the answer",
        stem,
        csv=csv_text([recognition]),
        json=json_text_of(recognition, shown.curves),
        vtt=vtt_text(recognition, shown.curves, max(threshold, LEAST_CONFIDENCE)),
    )


def downloads_of_many(outcomes: Sequence[Outcome]) -> str:
    """Links to the answers to several clips, failures among them in the JSON."""
    recognised = [outcome for outcome in outcomes if isinstance(outcome, Recognition)]
    return links("Download all", "results", csv=csv_text(recognised), json=json_text(outcomes)) if outcomes else ""


def downloads_of_signs(signs: Sequence[LiveEvent], model: str) -> str:
    """Links to what was signed live; the text may be copied too."""
    if not signs:
        return ""
    text = "".join(f"{clock(sign.start_s)} {sign.gloss}\n" for sign in signs)
    segments = [
        Segment(sign.gloss, sign.class_id, sign.start_s, sign.end_s, sign.confidence, sign.start_s) for sign in signs
    ]
    in_order = sorted(segments, key=lambda segment: segment.start_s)
    files = links("Download the transcript", "transcript", txt=text, vtt=webvtt(in_order, f"{model}: live"))
    return files + render("copy.html", text=text)


def links(title: str, stem: str, **texts: str) -> str:
    """A link a format."""
    files = [
        {"name": f"{stem}.{suffix}", "label": TYPES[suffix][0], "address": data_uri(TYPES[suffix][1], text.encode())}
        for suffix, text in texts.items()
    ]
    return render("downloads.html", title=title, files=files, id=f"downloads-{title.split()[-1]}")
