"""The endpoint `/recognize` for programs: it takes a clip and returns its recognition, under the page's limits."""

import dataclasses
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import TypeAdapter

from asl_triton.errors import AslTritonError
from asl_triton.postprocessing.ranking import DEFAULT_TOP_K
from asl_triton.results import Recognition
from asl_triton_ui.page_context import PageContext
from asl_triton_ui.state.request_queue import Ticket
from asl_triton_ui.state.server import on_background
from asl_triton_ui.upload_components import numbers_only, uploads_only


def build_api(context: PageContext) -> None:
    """Build the endpoint and the hidden components that Gradio reads its types from."""

    async def recognize(
        video: str | None,
        model: str | None = None,
        top_k: float = DEFAULT_TOP_K,
        min_confidence: float | None = None,
    ) -> dict[str, Any]:
        """Recognize the sign in a clip. `model` may be omitted if the server has only one. An answer below
        `min_confidence` (0 to 1, by default the model's own threshold) is unsure. Returns the recognition, with the
        best `predictions` first and the time it took."""
        if video is None:
            raise gr.Error("there is no clip: send a video file", print_exception=False)
        try:
            async with context.turns.wait_for_turn(Ticket()):
                await context.server.state()
                recognizer = context.server.recognizer(model or context.server.only_model())
                asking = recognizer.recognize(
                    video, top_k=int(top_k), min_confidence=min_confidence, name=Path(video).name
                )
                return dataclasses.asdict(await on_background(asking))
        except AslTritonError as exc:
            raise gr.Error(str(exc), print_exception=False) from exc

    with gr.Column(visible=False):
        video = uploads_only(gr.File(label="Video"))
        model = gr.Textbox(label="Model", value="")
        top_k = numbers_only(gr.Number(label="Top k", value=DEFAULT_TOP_K, precision=0, minimum=1))
        min_confidence = numbers_only(
            gr.Number(label="Min confidence", value=None, minimum=0, maximum=1), may_be_empty=True
        )
        recognition = gr.JSON(label="Recognition")
        # The schema in the endpoint's documentation; Gradio would say "any".
        recognition.api_info = TypeAdapter(Recognition).json_schema  # type: ignore[method-assign]
        gr.Button("recognize").click(
            recognize, [video, model, top_k, min_confidence], recognition, api_name="recognize", concurrency_limit=None
        )
