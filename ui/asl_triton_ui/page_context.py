"""The objects that the tabs share."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block

from asl_triton_ui.options import PageOptions
from asl_triton_ui.state.request_queue import RequestQueue
from asl_triton_ui.state.server import ServerConnection
from asl_triton_ui.state.taught_signs import TaughtSigns

# Options of an event: no loading overlay on its outputs, and no endpoint in Gradio's API.
UNSEEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

# The return value of an event handler: each changed component with its new value or properties.
Updates = dict[Block, Any]
NOTHING: Updates = gr.skip()


@dataclass(frozen=True)
class PageContext:
    """The server, the options, and the components and state that all tabs use.

    `model` has the name of the visitor's model, None if none is served. `signs` chooses what clips are answered with:
    the model's own glosses, taught signs, or both.
    """

    server: ServerConnection
    options: PageOptions
    model: gr.Dropdown
    signs: gr.Radio
    taught: TaughtSigns
    turns: RequestQueue
