"""`recognize_sign` and `recognize_sign_stream` on Triton's Python backend: its tensors, errors and threads.

The model folders import this file inside Triton, the only place where the module `triton_python_backend_utils` exists.
`execute` hands its requests to an event loop and returns, so requests are answered concurrently and reach the model
together. All tensors go through NumPy, because strings require it, and Triton 2.51's stub does not support NumPy arrays
through DLPack.
"""

import asyncio
import ctypes
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from asl_triton.decoding.base import WINDOWS_AHEAD
from asl_triton.errors import AslTritonError, ServerError
from asl_triton.models.recognize_sign import (
    CLASS_ID,
    CONFIDENCE,
    DETAILS,
    END_S,
    GLOSS,
    LOGIT,
    MIN_CONFIDENCE,
    REPOSITORIES_VARIABLE,
    SIGNER_BOX,
    START_S,
    TOP_K,
    VIDEO,
    format_details,
)
from asl_triton.models.repository import read_repositories
from asl_triton.results import Prediction, SignerBox
from asl_triton.transport.base import Array
from asl_triton.transport.error_mapping import shorten_message
from asl_triton.triton_backend.service import ServiceLimits, SignService, get_grpc_status

# From glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
CANCELLATION_POLL_S = 0.25
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class SignModel:
    """The `TritonPythonModel` of both models. The decoupled one answers each window, the other one the whole clip."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the limits and the models in the repositories, and start the event loop and the decoders."""
        configure_malloc()
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self.name = args["model_name"]
        self.is_decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        try:
            limits = ServiceLimits.from_parameters(parameters)
        except AslTritonError as exc:
            raise pb_utils.TritonModelException(f"{self.name}: {exc}") from exc
        models = read_repositories(find_repositories(Path(args["model_repository"])))
        for name, model in models.items():
            if isinstance(model, AslTritonError):
                pb_utils.Logger.log_warn(f"{self.name} cannot use the model {name}: {model}")
        self.service = SignService(models, ThisServer(), limits)
        self.room = threading.Semaphore(limits.requests_at_once)  # the rest wait in Triton's queue
        self.loop = asyncio.new_event_loop()
        # Each window that is sent occupies a thread until it is answered.
        self.loop.set_default_executor(ThreadPoolExecutor((WINDOWS_AHEAD + 1) * limits.requests_at_once))
        threading.Thread(target=self.loop.run_forever, name=self.name, daemon=True).start()
        self.service.decoders.warm_up()

    def execute(self, requests: Sequence[Any]) -> list[None] | None:
        """Start to answer the requests. Returns when the last one has started, without waiting for its answer."""
        for request in requests:
            self.room.acquire()
            answering = asyncio.run_coroutine_threadsafe(self.answer(request, request.get_response_sender()), self.loop)
            answering.add_done_callback(lambda _: self.room.release())
        return None if self.is_decoupled else [None] * len(requests)

    def finalize(self) -> None:
        """Stop the decoders. Triton has already waited for the answers."""
        self.service.close()

    async def answer(self, request: Any, sender: Any) -> None:
        """Answer one request, whatever happens: without a final response, Triton waits forever."""
        task = asyncio.create_task(
            self.stream(request, sender) if self.is_decoupled else self.recognize(request, sender)
        )
        try:
            while not (await asyncio.wait([task], timeout=CANCELLATION_POLL_S))[0]:
                if request.is_cancelled():
                    task.cancel()
            await task
        except asyncio.CancelledError:
            send_error(sender, "CANCELLED", "the caller canceled the request")
        except AslTritonError as exc:
            send_error(sender, get_grpc_status(exc), str(exc))
        except Exception as exc:
            pb_utils.Logger.log_error(f"{self.name} failed: {exc!r}")
            send_error(sender, "INTERNAL", f"{self.name} failed: {exc}. This is a bug; see the server's log")

    async def recognize(self, request: Any, sender: Any) -> None:
        """Send one response with the glosses of the clip."""
        recognition = await self.service.recognize(*await asyncio.to_thread(parse_request, request))
        details = make_tensor(DETAILS, [format_details(recognition).encode()], np.object_)
        tensors = [*build_ranked_tensors(recognition.predictions), details]
        sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)

    async def stream(self, request: Any, sender: Any) -> None:
        """Send a response for each window, and an empty final one."""
        arguments = await asyncio.to_thread(parse_request, request)
        async with aclosing(self.service.recognize_windows(*arguments)) as windows:
            async for window in windows:
                start_s = make_tensor(START_S, [window.start_s], np.float32)
                end_s = make_tensor(END_S, [window.end_s], np.float32)
                tensors = [*build_ranked_tensors(window.predictions), start_s, end_s]
                sender.send(pb_utils.InferenceResponse(tensors))
        sender.send(flags=FINAL)


def configure_malloc() -> None:
    """Make glibc return a video's memory to the system. The server's environment has it kept, which suits networks."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((M_MMAP_MAX, 65_536), (M_MMAP_THRESHOLD, 1 << 20), (M_TRIM_THRESHOLD, 1 << 20)):
            libc.mallopt(parameter, value)


def find_repositories(own_folder: Path) -> list[Path]:
    """Return the server's model repositories, as set by its launcher, or else the one that contains this model."""
    named = os.environ.get(REPOSITORIES_VARIABLE, "")
    return [Path(folder) for folder in named.split(os.pathsep) if folder] or [own_folder.parent]


class ThisServer:
    """The server that this model runs in, called from inside."""

    address = "this server"

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        """Request outputs of another model."""
        return await asyncio.to_thread(ask, model, inputs, outputs)

    async def is_ready(self, model: str) -> bool:
        """Return whether another model is served."""
        return bool(await asyncio.to_thread(pb_utils.is_model_ready, model))


def ask(model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    """Request outputs of another model and wait for them. The arrays are copies."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        requested_output_names=list(outputs),
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = request.exec()
    if response.has_error():
        raise ServerError(f"{model} gave no answer: {shorten_message(response.error().message())}")
    return {name: np.array(pb_utils.get_output_tensor_by_name(response, name).as_numpy()) for name in outputs}


def parse_request(request: Any) -> tuple[bytes, int | None, float | None, str | None, SignerBox | None]:
    """Return a request's video, TOP_K, MIN_CONFIDENCE, model and SIGNER_BOX, with None for each that was left out.

    Raises:
        AslTritonError: there is no video, or the model name or the box is invalid.
    """
    top_k, min_confidence = read_tensor(request, TOP_K), read_tensor(request, MIN_CONFIDENCE)
    model = json.loads(request.parameters() or "{}").get("model")
    if model is not None and not isinstance(model, str):
        raise AslTritonError(f"the parameter `model` is {model}: give the name of a model")
    video = read_tensor(request, VIDEO)
    if video is None:
        raise AslTritonError("the request has no VIDEO: send the bytes of a video file")
    box = pb_utils.get_input_tensor_by_name(request, SIGNER_BOX)
    return (
        bytes(video),
        None if top_k is None else int(top_k),
        None if min_confidence is None else float(min_confidence),
        model or None,
        None if box is None else SignerBox(*box.as_numpy().tolist()),
    )


def read_tensor(request: Any, name: str) -> Any:
    """Return the single value of an input, or None if it was left out."""
    given = pb_utils.get_input_tensor_by_name(request, name)
    return None if given is None else given.as_numpy().reshape(-1)[0]


def build_ranked_tensors(predictions: Sequence[Prediction]) -> list[Any]:
    """Build the outputs for the ranked glosses, best first."""
    return [
        make_tensor(GLOSS, [p.gloss.encode() for p in predictions], np.object_),
        make_tensor(CONFIDENCE, [p.confidence for p in predictions], np.float32),
        make_tensor(CLASS_ID, [p.class_id for p in predictions], np.int32),
        make_tensor(LOGIT, [p.logit for p in predictions], np.float32),
    ]


def make_tensor(name: str, values: Sequence[Any], dtype: Any) -> Any:
    """Make an output with one axis."""
    return pb_utils.Tensor(name, np.array(values, dtype))


def send_error(sender: Any, status: str, sentence: str) -> None:
    """Send an error as the final response."""
    error = pb_utils.TritonError(sentence, getattr(pb_utils.TritonError, status))
    sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
