"""The endpoint `/recognize`, for programs: a clip in, its recognition out, with the page's limits and queue."""

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
    """The endpoint, and the components that its types are read from; nothing of it is visible."""

    async def recognize(
        video: str | None,
        model: str | None = None,
        top_k: float = DEFAULT_TOP_K,
        min_confidence: float | None = None,
    ) -> dict[str, Any]:
        """Recognize the sign in a clip. `model` may be left out where only one is served; below `min_confidence` (0 to
        1), the model's own threshold if left out, the answer is unsure. Returns the recognition: `predictions` best
        first, and what it took."""
        if video is None:
            raise gr.Error("there is no clip: give a video file", print_exception=False)
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
        # What the endpoint's documentation says is in it; Gradio's own is "any".
        recognition.api_info = TypeAdapter(Recognition).json_schema  # type: ignore[method-assign]
        gr.Button("recognize").click(
            recognize, [video, model, top_k, min_confidence], recognition, api_name="recognize", concurrency_limit=None
        )
