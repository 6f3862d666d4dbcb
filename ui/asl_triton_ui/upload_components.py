"""Gradio's components for files, held to what a visitor sends: nothing is fetched from addresses of the net."""

from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component
from gradio_client.utils import is_http_url_like

C = TypeVar("C", bound=Component)

FETCHES_NOTHING = "This page fetches nothing from other hosts: send the file itself."


def uploads_only(component: C) -> C:
    """The component, which now refuses an address where Gradio would have the server download what is there.

    On the component and not by a subclass: Gradio writes a file beside the source of every class made of its own.
    """
    for name in ("move_resource_to_block_cache", "async_move_resource_to_block_cache"):
        setattr(component, name, refuse_urls(getattr(component, name)))
    return component


def refuse_urls(move: Any) -> Any:
    """A method of Gradio's, which raises its own error, that a visitor sees as a sentence, for anything but a file."""

    def moved(place: str | Path | None) -> Any:
        if isinstance(place, str) and is_http_url_like(place):
            raise gr.Error(FETCHES_NOTHING, print_exception=False)
        return move(place)

    return moved
