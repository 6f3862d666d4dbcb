"""The tab "Models": the recognisers that are served, and the glosses that each knows."""

from typing import Any

import gradio as gr

from asl_triton.models.status import ServerState
from asl_triton_ui.page_context import UNSEEN, Shell
from asl_triton_ui.rendering import render


def build(shell: Shell) -> None:
    """The tab's components and events."""
    gr.HTML('<p class="hint">The picker at the top of the page says which of these is asked.</p>')
    cards = gr.HTML("", elem_id="models")
    search = gr.Textbox(
        label="Search the vocabulary", placeholder="part of a gloss", elem_id="search", max_lines=1, autofocus=False
    )
    vocabulary = gr.HTML("", elem_id="vocabulary")

    def show(state: ServerState, model: str | None) -> list[Any]:
        served = state.recogniser(model)
        chosen = served.name if served else None
        return [
            render("models.html", recognisers=state.recognisers, broken=state.broken, chosen=chosen),
            found(state, model, ""),
            "",
        ]

    async def find(model: str | None, part: str) -> str:
        return found(await shell.server.state(), model, part)

    shell.follow([cards, vocabulary, search], show)
    search.change(find, [shell.model, search], vocabulary, queue=False, trigger_mode="always_last", **UNSEEN)


def found(state: ServerState, model: str | None, part: str) -> str:
    """The glosses with that part in them, in the alphabet's order."""
    served = state.recogniser(model)
    if served is None:
        return ""
    wanted = part.strip().casefold()
    shown = sorted((label for label in served.labels if wanted in label.casefold()), key=str.casefold)
    return render("vocabulary.html", shown=shown, total=len(served.labels), model=served.name)
