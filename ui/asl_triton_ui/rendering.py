"""Answers, states and sentences as HTML: templates that escape whatever comes from files, servers and visitors."""

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
    """Fill in one of this package's templates."""
    return templates().get_template(template).render(**values)


@cache
def templates() -> "Environment":
    """The templates, with filters for the figures in them."""
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
    """A message as a sentence: a capital first, unless it begins with a name such as `a.mp4`, and a full stop."""
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    begun = text[0].upper() + text[1:] if first.rstrip(",:;!?").isalpha() else text
    return begun if begun.endswith((".", "!", "?", "]")) else f"{begun}."


def format_whole_percent(share: float) -> str:
    """A share that was chosen in whole percents."""
    return f"{round(100 * share)}\N{NO-BREAK SPACE}%"


def format_seconds(value: float) -> str:
    """Seconds for people; minutes from two of them on."""
    if value < 120:
        return f"{value:.2f}\N{NO-BREAK SPACE}s"
    return f"{int(value // 60)}:{value % 60:04.1f}\N{NO-BREAK SPACE}min"


def format_milliseconds(value_s: float) -> str:
    """Seconds as milliseconds for people."""
    return f"{value_s * 1000:,.0f}\N{NO-BREAK SPACE}ms"


def format_clock(value_s: float) -> str:
    """Seconds since something began, as a clock shows them: `1:07.5`."""
    tenths = max(round(10 * value_s), 0)
    return f"{tenths // 600}:{tenths % 600 / 10:04.1f}"


def format_count(number: int, noun: str) -> str:
    """`1 frame`, `1,250 frames`."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,}\N{NO-BREAK SPACE}{noun if number == 1 else plural}"


def render_problem(sentence: str, title: str = "That did not work.") -> str:
    """What went wrong, for a visitor."""
    return render("problem.html", title=title, sentence=sentence)


def encode_picture(image_bgr: Image, height: int = FILM_HEIGHT) -> str:
    """A frame, BGR (H, W, 3), scaled to a height, as a data URI: nothing of it is kept on the server."""
    scale = height / image_bgr.shape[0]
    size = (max(round(image_bgr.shape[1] * scale), 1), height)
    small = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return make_data_uri("image/jpeg", np.asarray(jpeg).tobytes())


def make_data_uri(media_type: str, content: bytes) -> str:
    """Content as an address of its own."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
