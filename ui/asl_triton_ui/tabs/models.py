"""The tab "Models": the models that are served, and the glosses that each knows."""

from typing import Any

import gradio as gr

from asl_triton.models.status import ServerStatus
from asl_triton_ui.page_context import UNSEEN, PageContext
from asl_triton_ui.rendering import render


def build(shell: PageContext) -> None:
    """The tab's components and events."""
    gr.HTML('<p class="hint">The picker at the top of the page says which of these is asked.</p>')
    cards = gr.HTML("", elem_id="models")
    search = gr.Textbox(
        label="Search the vocabulary", placeholder="part of a gloss", elem_id="search", max_lines=1, autofocus=False
    )
    vocabulary = gr.HTML("", elem_id="vocabulary")

    def show(state: ServerStatus, model: str | None) -> list[Any]:
        served = state.model(model)
        chosen = served.name if served else None
        return [
            render("models.html", models=state.models, broken=state.broken, chosen=chosen),
            render_models(state, model, ""),
            "",
        ]

    async def find(model: str | None, part: str) -> str:
        return render_models(await shell.server.state(), model, part)

    shell.follow([cards, vocabulary, search], show)
    search.change(find, [shell.model, search], vocabulary, queue=False, trigger_mode="always_last", **UNSEEN)


def render_models(state: ServerStatus, model: str | None, part: str) -> str:
    """The glosses with that part in them, in the alphabet's order."""
    served = state.model(model)
    if served is None:
        return ""
    wanted = part.strip().casefold()
    shown = sorted((label for label in served.labels if wanted in label.casefold()), key=str.casefold)
    return render("vocabulary.html", shown=shown, total=len(served.labels), model=served.name)
