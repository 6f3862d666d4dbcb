"""How to film a sign so that it is recognized: a few lines on the page; docs/filming.md says more."""

import gradio as gr

from asl_triton_ui.rendering import render


def build_filming_guide() -> gr.HTML:
    """The guide, folded up until a visitor opens it."""
    return gr.HTML(render("filming.html"), elem_classes="filming")
