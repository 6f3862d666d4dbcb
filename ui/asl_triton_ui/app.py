"""The page: its header, the server's status, and the tabs."""

import gradio as gr

from asl_triton.models.served import ServedModel
from asl_triton.models.status import ServerStatus
from asl_triton.teaching.transport import KNOWN_FROM
from asl_triton_ui.api import build_api
from asl_triton_ui.options import PageOptions
from asl_triton_ui.page_context import NOTHING, UNSEEN, PageContext, Updates
from asl_triton_ui.rendering import format_count, render
from asl_triton_ui.state.request_queue import RequestQueue
from asl_triton_ui.state.server import ServerConnection
from asl_triton_ui.state.taught_signs import BOTH, OWN, TAUGHT, Signs, TaughtSigns
from asl_triton_ui.tabs.batch import BatchTab
from asl_triton_ui.tabs.live import LiveTab
from asl_triton_ui.tabs.models import ModelsTab
from asl_triton_ui.tabs.recognize import RecognizeTab
from asl_triton_ui.tabs.teach import TeachTab
from asl_triton_ui.upload_components import refuse_foreign_inputs

TITLE = "asl-triton"
ASK_EVERY_S = 2.5  # how often an open page asks for the server's status


def build(server: ServerConnection, options: PageOptions) -> gr.Blocks:
    """Build the whole page."""
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with blocks:
        Page(blocks, server, options)
    return refuse_foreign_inputs(blocks)


class Page:
    """The components around the tabs, and the updates that keep every open page current about the server."""

    def __init__(self, blocks: gr.Blocks, server: ServerConnection, options: PageOptions) -> None:
        self._server = server
        with gr.Row(elem_id="head"):
            gr.HTML(render("head.html"), elem_id="title")
            self.chip = gr.HTML(render("state.html", kind="asking", word="Checking the server", detail=server.address))
            self.model = gr.Dropdown(
                [],
                label="Model",
                interactive=True,
                filterable=False,
                elem_id="model",
                min_width=220,
                visible=False,
            )
            taught = TaughtSigns(options)
            self.signs = gr.Radio(
                [("Model's signs", OWN), ("Taught signs", TAUGHT), ("Both", BOTH)],
                value=choose_signs(taught),
                label="Answer with",
                elem_id="signs",
                min_width=220,
                visible=taught.path is not None,
            )
        self.card = gr.HTML("", elem_id="card", visible=False)
        self.away = gr.HTML("", elem_id="away", visible=False)
        turns = RequestQueue(options.at_once, options.queue_limit)
        context = PageContext(server, options, self.model, self.signs, taught, turns)
        build_api(context)  # first, because Gradio adds a suffix to any later endpoint of the same name
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            with gr.Tab("Recognize", id="Recognize"):
                self.recognize_tab = RecognizeTab(context)
            with gr.Tab("Many clips", id="Many clips"):
                self.batch_tab = BatchTab(context)
            with gr.Tab("Live", id="Live"):
                LiveTab(context)
            with gr.Tab("Teach", id="Teach") as teach:
                self.teach_tab = TeachTab(context)
            with gr.Tab("Models", id="Models"):
                self.models_tab = ModelsTab(context)
        self.seen = gr.State(None)  # the status shown on this visitor's page
        models = self.models_tab
        self.thresholds = (self.recognize_tab.threshold, self.batch_tab.threshold)
        shown = [self.card, self.recognize_tab.samples, models.cards, models.vocabulary, models.search]
        chosen = [*shown, *self.thresholds]
        outputs = [self.seen, self.chip, self.away, self.model, *chosen]
        looked = [self.seen, self.model, self.signs]
        blocks.load(self.look, looked, outputs, queue=False, **UNSEEN)
        # If visitors share their signs, somebody else may have changed them.
        teach.select(self.teach_tab.show, None, self.teach_tab.outputs, queue=False, **UNSEEN)
        blocks.load(self.teach_tab.show, None, self.teach_tab.outputs, queue=False, **UNSEEN)
        timer = gr.Timer(ASK_EVERY_S)
        timer.tick(self.look, looked, outputs, queue=False, trigger_mode="once", **UNSEEN)
        self.model.input(self.choose, [self.model, self.signs], chosen, queue=False, **UNSEEN)
        self.signs.change(self.choose_signs, [self.model, self.signs], [*self.thresholds], queue=False, **UNSEEN)

    async def look(self, before: ServerStatus | None, model: str | None, signs: str) -> Updates:
        """Get the server's status and show what changed."""
        now = await self._server.state()
        if now == before:
            return NOTHING
        updates: Updates = {self.seen: now, self.chip: render_chip(now), self.away: render_away(now)}
        served = now.model(model) or now.model(None)
        if served is None:  # the choice stays for when the server is back
            return updates
        known = before.model(model) if before else None
        is_other = served.name != model or (known is not None and known.card != served.card)
        updates |= self._show_threshold(served, signs) if is_other else {}
        return {**updates, self.model: make_picker(now, served.name), **self._show_model(now, served.name)}

    async def choose(self, model: str | None, signs: str) -> Updates:
        """Show everything that depends on the model."""
        now = await self._server.state()
        return {**self._show_model(now, model), **self._show_threshold(now.model(model), signs)}

    async def choose_signs(self, model: str | None, signs: str) -> Updates:
        """Show the threshold of the chosen signs."""
        return self._show_threshold((await self._server.state()).model(model), signs) or NOTHING

    def _show_model(self, status: ServerStatus, model: str | None) -> Updates:
        return {
            self.card: render_card(status.model(model)),
            **self.recognize_tab.show_server(status, model),
            **self.models_tab.show_server(status, model),
        }

    def _show_threshold(self, served: ServedModel | None, signs: str) -> Updates:
        """Set the sliders to the model's own threshold or to that of taught signs. A visitor's setting stays until
        the model or the choice of signs changes."""
        if served is None:
            return {}
        least = (served.card.min_confidence or 0.0) if signs == OWN else KNOWN_FROM
        percent = round(100 * least)
        return dict.fromkeys(self.thresholds, percent)


def choose_signs(taught: TaughtSigns) -> Signs:
    """Return the signs to answer with until a visitor chooses."""
    if taught.path is None:
        return OWN
    return BOTH if taught.with_vocabulary else TAUGHT


def render_chip(state: ServerStatus) -> str:
    """Render the server's status on one line: ready, away, or without a model."""
    if state.version is None:
        return render("state.html", kind="away", word="Server away", detail=state.address)
    if not state.is_ready:
        return render("state.html", kind="away", word="No model", detail=state.address)
    detail = f"Triton {state.version} at {state.address}"
    return render("state.html", kind="ready", word="Ready", detail=detail)


def render_card(served: ServedModel | None) -> gr.HTML:
    """Render the model's purpose and its caveat."""
    if served is None or not (served.card.purpose or served.card.caveat):
        return gr.HTML("", visible=False)
    return gr.HTML(render("card.html", served=served), visible=True)


def render_away(state: ServerStatus) -> gr.HTML:
    """Render what to do if the server is away or serves no model."""
    if state.is_ready:
        return gr.HTML("", visible=False)
    is_away = state.version is None
    title = f"No server answers at {state.address}" if is_away else f"{state.address} serves no model"
    text = render("away.html", title=title, problem=state.problem or "", is_away=is_away, address=state.address)
    return gr.HTML(text, visible=True)


def make_picker(state: ServerStatus, chosen: str) -> gr.Dropdown:
    """List the served models, each with its vocabulary, preset and precision."""
    choices = [
        (f"{m.name}: {format_count(len(m.labels), 'gloss')}, {m.preset.name}, {m.precision}", m.name)
        for m in state.models
    ]
    return gr.Dropdown(choices, value=chosen, visible=True)
