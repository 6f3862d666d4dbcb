"""Restricts Gradio's components to the inputs that the page itself sends, and refuses everything else with a message.

Methods are replaced on each component, not in a subclass, because Gradio writes a file next to the source of every
subclass of its components.
"""

import base64
import io
import math
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import numpy as np
import PIL.Image
from gradio.components import Component
from gradio.data_classes import ImageData
from gradio.route_utils import GradioMultiPartParser
from gradio_client.utils import is_http_url_like
from starlette.formparsers import MultiPartException

from asl_triton.errors import VideoError
from asl_triton.video.colors import Image

C = TypeVar("C", bound=Component)

NOT_A_FILE = "the upload cannot be read: send files in the form's field `files`, each with a name"
FETCHES_NOTHING = "This page does not fetch files from other hosts: send the file itself."
PICTURE_PREFIX = "data:image/"  # of a live picture from a browser's canvas
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PICTURE_BYTES = 2_000_000
MAX_JPEG_SCANS = 100  # a browser writes one, progressive files ten; decoding each one covers the whole picture
MAX_PICTURE_PIXELS = 4_000_000  # enough for a camera's 2560 x 1440; the page asks for 320 x 240


def uploads_only(component: C) -> C:
    """Make a component refuse URLs, which Gradio would download on the server. Returns the component."""
    for name in ("move_resource_to_block_cache", "async_move_resource_to_block_cache"):
        setattr(component, name, refuse_urls(getattr(component, name)))
    return component


def refuse_urls(move: Any) -> Any:
    """Wrap a Gradio method so that it refuses a URL with a message that the visitor sees."""

    def moved(place: str | Path | None) -> Any:
        if isinstance(place, str) and is_http_url_like(place):
            raise gr.Error(FETCHES_NOTHING, print_exception=False)
        return move(place)

    return moved


def refuse_foreign_inputs(blocks: gr.Blocks) -> gr.Blocks:
    """Make the page answer unexpected inputs with a message that contains no path of this machine. Returns the page."""
    preprocess = blocks.preprocess_data

    async def preprocess_data(*arguments: Any, **options: Any) -> Any:
        try:
            return await preprocess(*arguments, **options)
        except gr.Error:
            raise
        except Exception as exc:  # whatever Gradio raises
            raise gr.Error("The page cannot read this input. Reload and try again.", print_exception=False) from exc

    blocks.preprocess_data = preprocess_data  # type: ignore[method-assign]
    return blocks


def refuse_form_fields() -> None:
    """Make Gradio refuse upload fields that are not files, which it would keep in memory."""
    begin_part = GradioMultiPartParser.on_headers_finished

    def begin_file(self: GradioMultiPartParser) -> None:
        begin_part(self)
        if self._current_part.file is None:
            raise MultiPartException(NOT_A_FILE)

    GradioMultiPartParser.on_headers_finished = begin_file  # type: ignore[method-assign]


def numbers_only(component: C, *, may_be_empty: bool = False) -> C:
    """Make a slider or number field refuse anything but a finite number, or nothing if it `may_be_empty`.

    Returns the component.
    """
    preprocess = component.preprocess

    def read_number(payload: Any) -> Any:
        if payload is None and may_be_empty:
            return None
        is_number = isinstance(payload, int | float) and not isinstance(payload, bool)
        if not is_number or not math.isfinite(payload):
            raise gr.Error(f"{component.label} must be a number.", print_exception=False)
        return preprocess(payload)

    component.preprocess = read_number  # type: ignore[method-assign]
    return component


def finite_numbers_only(component: C) -> C:
    """Make a number field refuse anything but a finite number or nothing. Returns the component."""
    read_number = numbers_only(component).preprocess

    def read_optional(payload: Any) -> Any:
        return None if payload is None else read_number(payload)

    component.preprocess = read_optional  # type: ignore[method-assign]
    return component


def encoded_pictures(component: gr.Image) -> gr.Image:
    """Make a camera component pass each picture on undecoded, for `decode_picture`. Returns the component."""
    uploads_only(component)

    def read_picture(payload: ImageData | None) -> str | None:
        if payload is None:
            return None
        if payload.url is None or not payload.url.startswith(PICTURE_PREFIX):
            raise gr.Error(FETCHES_NOTHING, print_exception=False)
        return payload.url

    component.preprocess = read_picture  # type: ignore[method-assign]
    return component


def decode_picture(data_uri: str) -> Image:
    """Decode a live picture, a `data:` URI, into RGB (H, W, 3). Its header is checked for size before it is decoded.

    Raises:
        VideoError: it is not a picture, is damaged, or is too large.
    """
    encoded = data_uri.partition(",")[2]
    if len(encoded) > MAX_PICTURE_BYTES * 4 // 3 + 4:
        raise VideoError(
            f"the camera's picture is larger than {MAX_PICTURE_BYTES // 10**6} MB: choose a lower resolution"
        )
    try:
        content = base64.b64decode(encoded, validate=True)
        if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MAX_JPEG_SCANS:
            raise VideoError(f"the camera's picture has more than {MAX_JPEG_SCANS} scans, which no browser writes")
        with PIL.Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PICTURE_PIXELS:
                raise VideoError(
                    f"the camera's picture has more than {MAX_PICTURE_PIXELS:,} pixels: choose a lower resolution"
                )
            return np.asarray(picture.convert("RGB"))
    except VideoError:
        raise
    except PIL.Image.DecompressionBombError as exc:
        raise VideoError(
            f"the camera's picture has more than {MAX_PICTURE_PIXELS:,} pixels: choose a lower resolution"
        ) from exc
    except Exception as exc:  # Pillow does not document what a damaged picture raises
        raise VideoError("the camera's picture cannot be read: it is damaged, or not JPEG, PNG or WebP") from exc
