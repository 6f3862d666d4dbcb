"""Renders HTML from templates, which escape all text that comes from files, servers and visitors."""

import base64
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from asl_triton.video.colors import Image
from asl_triton.writers.html import load_templates

if TYPE_CHECKING:
    from jinja2 import Environment

FILM_HEIGHT = 108  # pixels of a frame in the filmstrip
JPEG_QUALITY = 80


def render(template: str, **values: Any) -> str:
    """Render one of this package's templates."""
    return templates().get_template(template).render(**values)


@cache
def templates() -> "Environment":
    """Return the templates, with filters that format numbers and sentences."""
    environment = load_templates("asl_triton_ui")
    environment.filters.update(
        whole_percent=format_whole_percent,
        seconds=format_seconds,
        milliseconds=format_milliseconds,
        count=format_count,
        clock=format_clock,
        sentence=format_sentence,
    )
    return environment


def format_sentence(text: str) -> str:
    """Capitalize a message, unless it begins with a name such as `a.mp4`, and end it with a period."""
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    begun = text[0].upper() + text[1:] if first.rstrip(",:;!?").isalpha() else text
    return begun if begun.endswith((".", "!", "?", "]")) else f"{begun}."


def format_whole_percent(share: float) -> str:
    """Format a share as a whole percentage."""
    return f"{round(100 * share)}\N{NO-BREAK SPACE}%"


def format_seconds(value: float) -> str:
    """Format seconds for people, as minutes from two minutes on."""
    if value < 120:
        return f"{value:.2f}\N{NO-BREAK SPACE}s"
    return f"{int(value // 60)}:{value % 60:04.1f}\N{NO-BREAK SPACE}min"


def format_milliseconds(value_s: float) -> str:
    """Format seconds as milliseconds for people."""
    return f"{value_s * 1000:,.0f}\N{NO-BREAK SPACE}ms"


def format_clock(value_s: float) -> str:
    """Format elapsed seconds as a clock does: `1:07.5`."""
    tenths = max(round(10 * value_s), 0)
    return f"{tenths // 600}:{tenths % 600 / 10:04.1f}"


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun: `1 frame`, `1,250 frames`."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,}\N{NO-BREAK SPACE}{noun if number == 1 else plural}"


def render_problem(sentence: str, title: str = "That did not work.") -> str:
    """Render what went wrong, for a visitor."""
    return render("problem.html", title=title, sentence=sentence)


def encode_picture(image_bgr: Image, height: int = FILM_HEIGHT) -> str:
    """Scale a BGR frame (H, W, 3) to a height in pixels and return it as a JPEG data URI."""
    scale = height / image_bgr.shape[0]
    size = (max(round(image_bgr.shape[1] * scale), 1), height)
    small = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return make_data_uri("image/jpeg", np.asarray(jpeg).tobytes())


def make_data_uri(media_type: str, content: bytes) -> str:
    """Return the content as a base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
