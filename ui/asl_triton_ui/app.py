"""The page: its head, the state of the server, the tabs; and starting it."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from asl_triton.models.status import ServerStatus
from asl_triton_ui import api
from asl_triton_ui.options import PageOptions
from asl_triton_ui.page_context import UNSEEN, PageContext
from asl_triton_ui.rendering import format_count, render
from asl_triton_ui.state.request_queue import RequestQueue
from asl_triton_ui.state.server import ServerConnection
from asl_triton_ui.tabs import batch as many
from asl_triton_ui.tabs import live, models
from asl_triton_ui.tabs import recognize as recognize

TITLE = "asl-triton"
ASK_EVERY_S = 2.5  # how often a page that is open asks how the server is

# A tab is one file; the order is that of the page.
TABS: dict[str, Callable[[PageContext], None]] = {
    "Recognize": recognize.build,
    "Many clips": many.build,
    "Live": live.build,
    "Models": models.build,
}


def build(server: ServerConnection, options: PageOptions) -> gr.Blocks:
    """The whole page."""
    page = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with page:
        with gr.Row(elem_id="head"):
            gr.HTML(render("head.html"), elem_id="title")
            state = gr.HTML(render("state.html", kind="asking", word="Asking the server", detail=server.address))
            model = gr.Dropdown(
                [],
                label="Model",
                interactive=True,
                filterable=False,
                elem_id="model",
                min_width=220,
                visible=False,
            )
        away = gr.HTML("", elem_id="away", visible=False)
        shell = PageContext(server, options, model, RequestQueue(options.at_once, options.queue_limit))
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            for label, build_tab in TABS.items():
                with gr.Tab(label, id=label):
                    build_tab(shell)
        api.build(shell)
        watch(page, shell, state, away)
    return page


def watch(page: gr.Blocks, shell: PageContext, chip: gr.HTML, away: gr.HTML) -> None:
    """Keep every open page told how the server is."""
    seen = gr.State(None)  # the state that this visitor's page shows
    outputs = [seen, chip, away, shell.model, *shell.outputs]

    async def look(before: ServerStatus | None, model: str | None) -> list[Any]:
        now = await shell.server.state()
        if now == before:
            return [gr.skip()] * len(outputs)
        said = [now, render_chip(now), render_away(now)]
        served = now.model(model) or now.model(None)
        if served is None:  # what was chosen stays for when the server is back
            return said + [gr.skip()] * (len(outputs) - len(said))
        return [*said, make_picker(now, served.name), *shell.updates(now, served.name)]

    async def choose(model: str | None) -> list[Any]:
        return shell.updates(await shell.server.state(), model)

    page.load(look, [seen, shell.model], outputs, queue=False, **UNSEEN)
    gr.Timer(ASK_EVERY_S).tick(look, [seen, shell.model], outputs, queue=False, trigger_mode="once", **UNSEEN)
    shell.model.input(choose, [shell.model], shell.outputs, queue=False, **UNSEEN)


def render_chip(state: ServerStatus) -> str:
    """The server in a line: there, away, or without a model."""
    if state.version is None:
        return render("state.html", kind="away", word="Server away", detail=state.address)
    if not state.is_ready:
        return render("state.html", kind="away", word="No model", detail=state.address)
    detail = f"Triton {state.version} at {state.address}"
    return render("state.html", kind="ready", word="Ready", detail=detail)


def render_away(state: ServerStatus) -> gr.HTML:
    """What to do about a server that cannot be asked."""
    if state.is_ready:
        return gr.HTML("", visible=False)
    is_away = state.version is None
    title = f"No server answers at {state.address}" if is_away else f"{state.address} has nothing to ask"
    text = render("away.html", title=title, problem=state.problem or "", is_away=is_away, address=state.address)
    return gr.HTML(text, visible=True)


def make_picker(state: ServerStatus, chosen: str) -> gr.Dropdown:
    """The models that are served, each with what tells them apart."""
    choices = [
        (f"{m.name}: {format_count(len(m.labels), 'gloss')}, {m.preset.name}, {m.precision}", m.name)
        for m in state.models
    ]
    return gr.Dropdown(choices, value=chosen, visible=True)
