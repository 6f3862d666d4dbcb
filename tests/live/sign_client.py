"""A client of `recognize_sign` and `recognize_sign_stream` that uses tritonclient and none of our code."""

import json
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException


@dataclass(frozen=True)
class Answer:
    """One response, best gloss first."""

    glosses: tuple[str, ...]
    confidences: tuple[float, ...]
    class_ids: tuple[int, ...]
    logits: tuple[float, ...]
    details: dict[str, Any]
    start_s: float = 0.0
    end_s: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """An error: gRPC's status and message."""

    status: str
    message: str


def ask(
    address: str,
    video: bytes,
    *,
    top_k: int | None = None,
    min_confidence: float | None = None,
    model: object = None,
    timeout_s: float | None = 120,
) -> Answer | Refusal:
    """Send the bytes of a video file to `recognize_sign`."""
    with tritonclient.grpc.InferenceServerClient(address) as client:
        return ask_with(client, build_inputs(video, top_k, min_confidence), model, timeout_s)


def ask_with(
    client: tritonclient.grpc.InferenceServerClient,
    tensors: Sequence[tritonclient.grpc.InferInput],
    model: object = None,
    timeout_s: float | None = 120,
) -> Answer | Refusal:
    """Send these inputs to `recognize_sign`."""
    parameters = None if model is None else {"model": model}
    try:
        result = client.infer("recognize_sign", list(tensors), parameters=parameters, client_timeout=timeout_s)
    except InferenceServerException as exc:
        return read_refusal(exc)
    return read_answer(result)


def ask_stream(
    address: str, video: bytes, *, model: str | None = None, top_k: int | None = None
) -> list[Answer | Refusal]:
    """Send a video to `recognize_sign_stream`, and return all responses until the final one."""
    responses: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(address) as client:
        # With this header, an error has a status and ends the stream.
        client.start_stream(lambda result, error: responses.put((result, error)), headers={"triton_grpc_error": "true"})
        client.async_stream_infer(
            "recognize_sign_stream",
            build_inputs(video, top_k),
            parameters=None if model is None else {"model": model},
            enable_empty_final_response=True,
        )
        answers: list[Answer | Refusal] = []
        while True:
            result, error = responses.get(timeout=120)
            if error is not None:
                return [*answers, read_refusal(error)]
            if result.get_response().outputs:
                answers.append(read_answer(result))
            if result.get_response().parameters["triton_final_response"].bool_param:
                return answers


def build_inputs(
    video: bytes, top_k: int | None = None, min_confidence: float | None = None
) -> list[tritonclient.grpc.InferInput]:
    """Build the input tensors of a request."""
    tensors = [build_tensor("VIDEO", np.array([video], np.object_), "BYTES")]
    if top_k is not None:
        tensors.append(build_tensor("TOP_K", np.array([top_k], np.int32), "INT32"))
    if min_confidence is not None:
        tensors.append(build_tensor("MIN_CONFIDENCE", np.array([min_confidence], np.float32), "FP32"))
    return tensors


def build_tensor(name: str, values: np.ndarray, datatype: str) -> tritonclient.grpc.InferInput:
    """Build one input tensor."""
    tensor = tritonclient.grpc.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def read_answer(result: Any) -> Answer:
    """Read the outputs of a response."""

    def values(name: str) -> tuple[Any, ...]:
        output = result.as_numpy(name)
        return () if output is None else tuple(output.tolist())

    return Answer(
        glosses=tuple(gloss.decode() for gloss in values("GLOSS")),
        confidences=values("CONFIDENCE"),
        class_ids=values("CLASS_ID"),
        logits=values("LOGIT"),
        details=json.loads(values("DETAILS")[0]) if values("DETAILS") else {},
        start_s=(values("START_S") or (0.0,))[0],
        end_s=(values("END_S") or (0.0,))[0],
    )


def read_refusal(error: Any) -> Refusal:
    """Read the status and message of an error."""
    return Refusal((error.status() or "").removeprefix("StatusCode."), error.message())
