"""The tab "Models": the served models and the vocabulary of each."""

import gradio as gr

from asl_triton.models.status import ServerStatus
from asl_triton_ui.page_context import UNSEEN, PageContext, Updates
from asl_triton_ui.rendering import render


class ModelsTab:
    """The tab's components and event handlers."""

    def __init__(self, context: PageContext) -> None:
        self._server = context.server
        gr.HTML('<p class="hint">Choose a model with the picker at the top of the page.</p>')
        self.cards = gr.HTML("", elem_id="models")
        self.search = gr.Textbox(
            label="Search the vocabulary", placeholder="part of a gloss", elem_id="search", max_lines=1, autofocus=False
        )
        self.vocabulary = gr.HTML("", elem_id="vocabulary")
        self.search.change(
            self.find, [context.model, self.search], self.vocabulary, queue=False, trigger_mode="always_last", **UNSEEN
        )

    def show_server(self, status: ServerStatus, model: str | None) -> Updates:
        """Show all models and the vocabulary of the chosen one."""
        served = status.model(model)
        chosen = served.name if served else None
        return {
            self.cards: render("models.html", models=status.models, broken=status.broken, chosen=chosen),
            self.vocabulary: render_vocabulary(status, model, ""),
            self.search: "",
        }

    async def find(self, model: str | None, part: str) -> str:
        """Search the vocabulary."""
        return render_vocabulary(await self._server.state(), model, part)


def render_vocabulary(status: ServerStatus, model: str | None, part: str) -> str:
    """Render the glosses that contain `part`, in alphabetical order."""
    served = status.model(model)
    if served is None:
        return ""
    wanted = part.strip().casefold()
    shown = sorted((label for label in served.labels if wanted in label.casefold()), key=str.casefold)
    return render("vocabulary.html", shown=shown, total=len(served.labels), model=served.name)
