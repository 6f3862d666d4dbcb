"""The signer's box on the page: a picture of the clip, the box drawn on it, and a field for each of its sides."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import gradio as gr

from asl_triton.decoding.factory import open_frames
from asl_triton.errors import AslTritonError
from asl_triton.presets import Preset
from asl_triton.results import SignerBox
from asl_triton.signer.search import SEARCHED, estimate_signer, is_found
from asl_triton.video.colors import Image
from asl_triton.video.reader import Limits
from asl_triton_ui.rendering import encode_picture, render
from asl_triton_ui.upload_components import finite_numbers_only

PICTURE_HEIGHT = 320  # pixels
SIDES = ("Left", "Top", "Right", "Bottom")
WHOLE = (0.0, 0.0, 100.0, 100.0)  # percent: the whole frame
SOURCES = {"face": "found by the face detector", "caller": "your box", "person": "found by the person detector"}


def make_side_fields() -> list[gr.Number]:
    """Make a field for each side of the box, in percent of the picture. If all are empty, the page finds the signer."""
    fields = [
        gr.Number(
            label=f"{side}, %",
            value=None,
            minimum=0,
            maximum=100,
            step=1,
            min_width=90,
            elem_id=f"box-{side.lower()}",
            elem_classes="box-side",
        )
        for side in SIDES
    ]
    return [finite_numbers_only(field) for field in fields]


def parse_box(percents: Sequence[float | None]) -> tuple[SignerBox | None, bool]:
    """Return the box in the four fields, None without one, and whether to look for the signer.

    Raises:
        AslTritonError: only some of the fields are filled in, or they are not a box.
    """
    values = [percent for percent in percents if percent is not None]
    if not any(values):  # Gradio sends an empty field as 0 until its first change
        return None, True
    if len(values) < len(SIDES):
        raise AslTritonError("the signer's box has four sides: fill in all of them, or leave all empty")
    if tuple(values) == WHOLE:
        return None, False
    x0, y0, x1, y1 = (value / 100 for value in values)
    return SignerBox(x0, y0, x1, y1), False


def read_first_frames(path: Path, limits: Limits) -> list[Image]:
    """Read the frames to search for the signer, BGR (H, W, 3). The first one is also shown on the page.

    Raises:
        VideoError: the clip cannot be read.
    """
    with open_frames(path, limits, path.name) as video:
        return [frame.image for frame in islice(video, 0, SEARCHED[-1] + 1, 2)]


def render_picture(path: Path, limits: Limits) -> str:
    """Render the first frame of a clip, to draw the box on. Empty if it cannot be read; recognizing it reports why."""
    try:
        images = read_first_frames(path, limits)
    except AslTritonError:
        return ""
    return render("box_picture.html", picture=encode_picture(images[0], PICTURE_HEIGHT)) if images else ""


def find_box(path: Path, limits: Limits) -> tuple[SignerBox | None, str]:
    """Look for the signer in the first frames of a clip. Returns the box, None without one, and a sentence about it.

    Raises:
        VideoError: the clip cannot be read.
    """
    images = read_first_frames(path, limits)
    estimate = estimate_signer(images)
    if estimate.box is None or not is_found(estimate):
        return None, "No signer was found: draw the box on the picture, or type its sides."
    several = f" {estimate.num_people} people are in the picture." if estimate.num_people > 1 else ""
    return estimate.box, f"A signer was found.{several} Correct the box if it is wrong, and press Recognize."


def to_percents(box: SignerBox) -> list[float]:
    """Return the sides of a box in whole percents, because decimals are hard to type into the fields."""
    return [float(round(100 * side)) for side in (box.x0, box.y0, box.x1, box.y1)]


def render_seen(box: SignerBox | None, preset: Preset | None) -> str:
    """Render a sentence about the part of the picture that the network saw."""
    if box is None:
        text = "The network saw the whole frame."
        if preset is not None and preset.framing == "signer":
            text += " It was trained on frames cropped to the signer: draw the box, and press Recognize."
    else:
        how = SOURCES.get(box.source, box.source)
        sure = "" if box.source == "caller" else f", {box.confidence:.0%} sure"
        text = f"The network saw the picture cropped to the signer ({how}{sure})."
    return render("box_said.html", text=text, corners=format_corners(box))


def format_corners(box: SignerBox | None) -> str:
    """Format the sides of a box, in percent, for the page's script; empty for the whole frame."""
    return "" if box is None else " ".join(f"{100 * side:.2f}" for side in (box.x0, box.y0, box.x1, box.y1))


def render_said(text: str) -> str:
    """Render a sentence about the box."""
    return render("box_said.html", text=text, corners="")
