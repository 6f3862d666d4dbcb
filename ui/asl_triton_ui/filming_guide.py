"""Short advice on the page about how to film a sign; docs/filming.md has more."""

import gradio as gr

from asl_triton_ui.rendering import render


def build_filming_guide() -> gr.HTML:
    """Build the guide, collapsed until a visitor opens it."""
    return gr.HTML(render("filming.html"), elem_classes="filming")
