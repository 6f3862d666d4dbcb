"""Where the signer is, on the page: a picture of the clip, the box on it, and the numbers that say the box."""

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
SOURCES = {"face": "found by the face", "caller": "by your box", "person": "found by the person detector"}


def make_side_fields() -> list[gr.Number]:
    """A field for each side of the box, in percent of the picture; all are empty if the page looks for the signer."""
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
    """The box that the four fields say, if they say one, and whether the signer is to be looked for.

    Raises:
        AslTritonError: some of the fields are empty, or they are not a box.
    """
    values = [percent for percent in percents if percent is not None]
    if not any(values):  # until its first change, Gradio sends an empty field as 0
        return None, True
    if len(values) < len(SIDES):
        raise AslTritonError("the signer's box has four sides: fill in all of them, or leave all empty")
    if tuple(values) == WHOLE:
        return None, False
    x0, y0, x1, y1 = (value / 100 for value in values)
    return SignerBox(x0, y0, x1, y1), False


def read_first_frames(path: Path, limits: Limits) -> list[Image]:
    """The frames of a clip that are searched for the signer, BGR (H, W, 3); the first is the one that is shown.

    Raises:
        VideoError: the clip cannot be read.
    """
    with open_frames(path, limits, path.name) as video:
        return [frame.image for frame in islice(video, 0, SEARCHED[-1] + 1, 2)]


def render_picture(path: Path, limits: Limits) -> str:
    """The first frame of a clip, to draw the box on; nothing if it cannot be read, which recognizing it will say."""
    try:
        images = read_first_frames(path, limits)
    except AslTritonError:
        return ""
    return render("box_picture.html", picture=encode_picture(images[0], PICTURE_HEIGHT)) if images else ""


def find_box(path: Path, limits: Limits) -> tuple[SignerBox | None, str]:
    """Look for the signer in the first frames of a clip: the box, and a sentence about it.

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
    """The sides of a box as the fields have them: whole percents, as a decimal point is hard to type into them."""
    return [float(round(100 * side)) for side in (box.x0, box.y0, box.x1, box.y1)]


def render_seen(box: SignerBox | None, preset: Preset | None) -> str:
    """What the network saw of the picture."""
    if box is None:
        text = "The network saw the whole frame."
        if preset is not None and preset.framing == "signer":
            text += " It was trained on signers cut out of theirs: draw the box, and press Recognize."
    else:
        how = SOURCES.get(box.source, box.source)
        sure = "" if box.source == "caller" else f", {box.confidence:.0%} sure"
        text = f"The network saw the framed part of the picture, {how}{sure}."
    return render("box_said.html", text=text, corners=format_corners(box))


def format_corners(box: SignerBox | None) -> str:
    """The sides of a box for the page's script; empty for the whole frame."""
    return "" if box is None else " ".join(f"{100 * side:.2f}" for side in (box.x0, box.y0, box.x1, box.y1))


def render_said(text: str) -> str:
    """A sentence about the box."""
    return render("box_said.html", text=text, corners="")
