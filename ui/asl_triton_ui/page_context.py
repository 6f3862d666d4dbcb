"""What the tabs share: the server, the model that is asked, and being told when either changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from asl_triton.models.status import ServerStatus
from asl_triton_ui.options import PageOptions
from asl_triton_ui.state.request_queue import RequestQueue
from asl_triton_ui.state.server import ServerConnection

DEFAULT_THRESHOLD = 0.5  # of a confidence, below which an answer is unsure
# Of an event: no veil over the components it fills, and no endpoint of its own in Gradio's API.
UNSEEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

# What a follower makes of the server's state and the name of the model asked: an update for each of its outputs.
StateUpdate = Callable[[ServerStatus, str | None], Sequence[Any]]


@dataclass(frozen=True)
class StateSubscriber:
    """Components that show something of the server, and how."""

    outputs: tuple[Component, ...]
    follow: StateUpdate


@dataclass
class PageContext:
    """A tab is one file with a function `build(shell)`, called where its components belong.

    `model` holds the name of the model that this visitor asks, None where none is served: give it to events as an
    input, and to `server.recognizer`. A tab that shows something of the server calls `follow`.
    """

    server: ServerConnection
    options: PageOptions
    model: gr.Dropdown
    turns: RequestQueue
    followers: list[StateSubscriber] = field(default_factory=list)

    def follow(self, outputs: Sequence[Component], follow: StateUpdate) -> None:
        """Fill `outputs` when the page is loaded, when the server serves something else, and when a model is chosen.

        While the server is away they stay as they are.
        """
        self.followers.append(StateSubscriber(tuple(outputs), follow))

    @property
    def outputs(self) -> list[Component]:
        """Of all followers."""
        return [component for follower in self.followers for component in follower.outputs]

    def updates(self, state: ServerStatus, model: str | None) -> list[Any]:
        """For `outputs`."""
        return [update for follower in self.followers for update in follower.follow(state, model)]
