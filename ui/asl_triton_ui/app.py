"""The page: its head, the state of the server, the tabs; and starting it."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from asl_triton.models.status import ServerState
from asl_triton_ui import api
from asl_triton_ui.options import PageOptions
from asl_triton_ui.page_context import UNSEEN, Shell
from asl_triton_ui.rendering import count, render
from asl_triton_ui.state.request_queue import Turns
from asl_triton_ui.state.server import Server
from asl_triton_ui.tabs import batch as many
from asl_triton_ui.tabs import live, models
from asl_triton_ui.tabs import recognize as recognise

TITLE = "asl-triton"
ASK_EVERY_S = 2.5  # how often a page that is open asks how the server is

# A tab is one file; the order is that of the page.
TABS: dict[str, Callable[[Shell], None]] = {
    "Recognise": recognise.build,
    "Many clips": many.build,
    "Live": live.build,
    "Models": models.build,
}


def build(server: Server, options: PageOptions) -> gr.Blocks:
    """The whole page."""
    page = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with page:
        with gr.Row(elem_id="head"):
            gr.HTML(render("head.html"), elem_id="title")
            state = gr.HTML(render("state.html", kind="asking", word="Asking the server", detail=server.address))
            model = gr.Dropdown(
                [],
                label="Recogniser",
                interactive=True,
                filterable=False,
                elem_id="model",
                min_width=220,
                visible=False,
            )
        away = gr.HTML("", elem_id="away", visible=False)
        shell = Shell(server, options, model, Turns(options.at_once, options.queue_limit))
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            for label, build_tab in TABS.items():
                with gr.Tab(label, id=label):
                    build_tab(shell)
        api.build(shell)
        watch(page, shell, state, away)
    return page


def watch(page: gr.Blocks, shell: Shell, chip: gr.HTML, away: gr.HTML) -> None:
    """Keep every open page told how the server is."""
    seen = gr.State(None)  # the state that this visitor's page shows
    outputs = [seen, chip, away, shell.model, *shell.outputs]

    async def look(before: ServerState | None, model: str | None) -> list[Any]:
        now = await shell.server.state()
        if now == before:
            return [gr.skip()] * len(outputs)
        said = [now, chip_of(now), away_of(now)]
        served = now.recogniser(model) or now.recogniser(None)
        if served is None:  # what was chosen stays for when the server is back
            return said + [gr.skip()] * (len(outputs) - len(said))
        return [*said, picker(now, served.name), *shell.updates(now, served.name)]

    async def choose(model: str | None) -> list[Any]:
        return shell.updates(await shell.server.state(), model)

    page.load(look, [seen, shell.model], outputs, queue=False, **UNSEEN)
    gr.Timer(ASK_EVERY_S).tick(look, [seen, shell.model], outputs, queue=False, trigger_mode="once", **UNSEEN)
    shell.model.input(choose, [shell.model], shell.outputs, queue=False, **UNSEEN)


def chip_of(state: ServerState) -> str:
    """The server in a line: there, away, or without a recogniser."""
    if state.version is None:
        return render("state.html", kind="away", word="Server away", detail=state.address)
    if not state.is_ready:
        return render("state.html", kind="away", word="No recogniser", detail=state.address)
    detail = f"Triton {state.version} at {state.address}"
    return render("state.html", kind="ready", word="Ready", detail=detail)


def away_of(state: ServerState) -> gr.HTML:
    """What to do about a server that cannot be asked."""
    if state.is_ready:
        return gr.HTML("", visible=False)
    is_away = state.version is None
    title = f"No server answers at {state.address}" if is_away else f"{state.address} has nothing to ask"
    text = render("away.html", title=title, problem=state.problem or "", is_away=is_away, address=state.address)
    return gr.HTML(text, visible=True)


def picker(state: ServerState, chosen: str) -> gr.Dropdown:
    """The recognisers that are served, each with what tells them apart."""
    choices = [
        (f"{m.name}: {count(len(m.labels), 'gloss')}, {m.preset.name}, {m.precision}", m.name)
        for m in state.recognisers
    ]
    return gr.Dropdown(choices, value=chosen, visible=True)
