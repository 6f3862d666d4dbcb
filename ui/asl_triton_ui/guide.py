"""The camera guide: advice on where to sit, next to the outline that the page's script draws."""

import numpy as np

from asl_triton.errors import VideoError
from asl_triton.signer.guide import Advice, AdviceFilter, choose_advice
from asl_triton.signer.search import estimate_signer
from asl_triton_ui.rendering import render
from asl_triton_ui.upload_components import decode_picture

OUTLINE = "Head to waist in the outline, hands inside the picture."
MAX_SIDE = 640  # pixels of a camera picture; the page's script sends 320
SENT = "For this advice, small camera pictures go to this page's server. They are not kept."
WORDS: dict[Advice, tuple[str, str, str]] = {  # symbol, advice, explanation
    "more light": ("☀", "More light", "You are hard to see. Turn on a lamp, or face the window."),
    "no face": ("?", "No face in view", "Face the camera, come closer, and take your hands off your face."),
    "move closer": ("+", "Move closer", "You are small in the picture."),
    "move back": ("\N{MINUS SIGN}", "Move back", "Your hands would leave the picture."),
    "move left": ("←", "Move left", "Or turn the camera to your right."),
    "move right": ("→", "Move right", "Or turn the camera to your left."),
    "move up": ("↑", "Move up", "Or tilt the camera down."),
    "move down": ("↓", "Move down", "Or tilt the camera up."),
    "good": ("✓", "Good", OUTLINE),
}


def render_guide(advice: Advice | None) -> str:
    """Render the advice, or how to sit if there is none yet."""
    if advice is None:
        return render("guide.html", kind="none", sign="◻", word="", detail=OUTLINE)
    sign, word, detail = WORDS[advice]
    kind = "good" if advice == "good" else "move"
    return render("guide.html", kind=kind, sign=sign, word=f"{word}.", detail=detail)


def guide_recording(picture: str | None, filtered: AdviceFilter) -> tuple[str, AdviceFilter]:
    """Advise a visitor before a recording, from a camera picture (a `data:` URI) and the pictures before it.

    Returns the advice as HTML, empty without a picture, and the filter for the next call.
    """
    if not picture:
        return "", AdviceFilter()
    try:
        image_bgr = np.ascontiguousarray(decode_picture(picture)[..., ::-1])
    except VideoError:
        return "", filtered
    if max(image_bgr.shape) > MAX_SIDE:
        return "", filtered
    advice = filtered.add(choose_advice(image_bgr, estimate_signer([image_bgr])))
    return render_guide(advice) + render("hint.html", hint=SENT), filtered
