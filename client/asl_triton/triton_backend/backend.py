"""`recognize_sign` and `recognize_sign_stream` on Triton's Python backend: its tensors, errors and threads.

The model folders import this file inside Triton, whose module `triton_python_backend_utils` exists nowhere else. Each
`execute` hands its request on and returns: requests are answered side by side, and reach the model together.
NumPy carries all tensors: strings have no other way, and Triton 2.51's stub does not bear arrays of NumPy by DLPack.
"""

import asyncio
import ctypes
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from asl_triton.decoding.base import WINDOWS_AHEAD
from asl_triton.errors import AslTritonError, ServerError
from asl_triton.results import Prediction, Recognition
from asl_triton.transport.base import Array
from asl_triton.triton_backend.service import RecognizeRequest, ServiceLimits, SignService, get_grpc_status

# From glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LOOKS_FOR_CANCELLATION_S = 0.25
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class SignModel:
    """The `TritonPythonModel` of both: a decoupled one answers each window, the other the whole clip."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the limits and the models beside this model, and start to answer."""
        configure_malloc()
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self.name = args["model_name"]
        self.is_decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        try:
            limits = ServiceLimits.from_parameters(parameters)
        except AslTritonError as exc:
            raise pb_utils.TritonModelException(f"{self.name}: {exc}") from exc
        repositories = repositories_of(os.getppid()) or [Path(args["model_repository"]).parent]
        self.service = SignService(repositories, ThisServer(WINDOWS_AHEAD * limits.requests_at_once), limits)
        self.room = threading.Semaphore(limits.requests_at_once)  # Triton's queue holds the rest, and refuses too many
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name=self.name, daemon=True).start()
        self.service.decoders.warm_up()

    def execute(self, requests: Sequence[Any]) -> list[None] | None:
        """Begin to answer; returns as soon as there is room for another request."""
        for request in requests:
            self.room.acquire()
            answering = asyncio.run_coroutine_threadsafe(self.answer(request, request.get_response_sender()), self.loop)
            answering.add_done_callback(lambda _: self.room.release())
        return None if self.is_decoupled else [None] * len(requests)

    def finalize(self) -> None:
        """End what decodes; Triton has waited for the answers."""
        self.service.close()

    async def answer(self, request: Any, sender: Any) -> None:
        """Answer one request, whatever comes: Triton waits for the final response for ever."""
        task = asyncio.create_task(
            self.stream(request, sender) if self.is_decoupled else self.recognize(request, sender)
        )
        try:
            while not (await asyncio.wait([task], timeout=LOOKS_FOR_CANCELLATION_S))[0]:
                if request.is_cancelled():
                    task.cancel()
            await task
        except asyncio.CancelledError:
            make_error(sender, "CANCELLED", "the caller has gone")
        except AslTritonError as exc:
            make_error(sender, get_grpc_status(exc), str(exc))
        except Exception as exc:
            pb_utils.Logger.log_error(f"{self.name} failed: {exc!r}")
            make_error(
                sender, "INTERNAL", f"{self.name} failed: {exc}. This is a fault of its own; see the server's log"
            )

    async def recognize(self, request: Any, sender: Any) -> None:
        """One response: the glosses of the clip."""
        question = await asyncio.to_thread(parse_request, request)
        recognition = await self.service.recognize(question)
        tensors = [*build_ranked_tensors(question.wanted(recognition.predictions)), build_details(recognition)]
        sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)

    async def stream(self, request: Any, sender: Any) -> None:
        """A response for each window, and an empty final one."""
        question = await asyncio.to_thread(parse_request, request)
        async with aclosing(self.service.recognize_windows(question)) as windows:
            async for heard in windows:
                times = [
                    make_tensor("START_S", [heard.start_s], np.float32),
                    make_tensor("END_S", [heard.end_s], np.float32),
                ]
                sender.send(pb_utils.InferenceResponse([*build_ranked_tensors(heard.predictions), *times]))
        sender.send(flags=FINAL)


def configure_malloc() -> None:
    """Let glibc return what a video took: the server's environment says to keep it, for the sake of networks."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((M_MMAP_MAX, 65_536), (M_MMAP_THRESHOLD, 1 << 20), (M_TRIM_THRESHOLD, 1 << 20)):
            libc.mallopt(parameter, value)


def repositories_of(server: int) -> list[Path]:
    """The model repositories on this machine that a `tritonserver` process was started with."""
    try:
        words = Path(f"/proc/{server}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # some sandboxes show a process nothing of others
        return []
    flags = ("--model-repository", "--model-store")
    given = [word.partition("=")[2] for word in words if word.startswith(tuple(f"{flag}=" for flag in flags))]
    given += [after for word, after in pairwise(words) if word in flags]
    return [Path(folder) for folder in given if Path(folder).is_dir()]


class ThisServer:
    """The server that this model runs in, asked without leaving it."""

    address = "this server"

    def __init__(self, asks_at_once: int) -> None:
        self._threads = ThreadPoolExecutor(asks_at_once, thread_name_prefix="ask")

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        """Ask another model."""
        answers: dict[str, Array] = await self._in_thread(ask, model, inputs, list(outputs))
        return answers

    async def is_ready(self, model: str) -> bool:
        """Whether another model is served."""
        return bool(await self._in_thread(pb_utils.is_model_ready, model))

    async def _in_thread(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def ask(model: str, inputs: Mapping[str, Array], outputs: list[str]) -> dict[str, Array]:
    """Ask another model and wait; its answers are copies."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        requested_output_names=outputs,
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = request.exec()
    if response.has_error():
        raise ServerError(f"{model} gave no answer: {' '.join(response.error().message().split())}")
    return {name: np.array(pb_utils.get_output_tensor_by_name(response, name).as_numpy()) for name in outputs}


def parse_request(request: Any) -> RecognizeRequest:
    """What a request asks.

    Raises:
        AslTritonError: a value of it is beyond what goes.
    """
    top_k, min_confidence = read_tensor(request, "TOP_K"), read_tensor(request, "MIN_CONFIDENCE")
    model = json.loads(request.parameters() or "{}").get("model")
    if model is not None and not isinstance(model, str):
        raise AslTritonError(f"the parameter `model` is {model}: give the name of a model")
    video = read_tensor(request, "VIDEO")
    if video is None:
        raise AslTritonError("the request has no VIDEO: send a video file's bytes in it")
    return RecognizeRequest(
        video=bytes(video),
        top_k=None if top_k is None else int(top_k),
        min_confidence=None if min_confidence is None else float(min_confidence),
        model=model or None,
    )


def read_tensor(request: Any, name: str) -> Any:
    """The one value of an input, or None where it was left out."""
    given = pb_utils.get_input_tensor_by_name(request, name)
    return None if given is None else given.as_numpy().reshape(-1)[0]


def build_ranked_tensors(predictions: Sequence[Prediction]) -> list[Any]:
    """The outputs that name glosses, best first."""
    return [
        make_tensor("GLOSS", [p.gloss.encode() for p in predictions], np.object_),
        make_tensor("CONFIDENCE", [p.confidence for p in predictions], np.float32),
        make_tensor("CLASS_ID", [p.class_id for p in predictions], np.int32),
        make_tensor("LOGIT", [p.logit for p in predictions], np.float32),
    ]


def build_details(recognition: Recognition) -> Any:
    """The output that says how the answer came about, as JSON."""
    names = ("model", "num_frames", "duration_s", "num_windows", "decode_s", "wait_s", "warnings")
    return make_tensor(
        "DETAILS", [json.dumps({name: getattr(recognition, name) for name in names}).encode()], np.object_
    )


def make_tensor(name: str, values: Sequence[Any], dtype: Any) -> Any:
    """An output of one axis."""
    return pb_utils.Tensor(name, np.array(values, dtype))


def make_error(sender: Any, status: str, sentence: str) -> None:
    """An error in place of a response, and the last."""
    error = pb_utils.TritonError(sentence, getattr(pb_utils.TritonError, status))
    sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
