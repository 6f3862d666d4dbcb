"""A caller of `recognize_sign` and `recognize_sign_stream` who has tritonclient and nothing of ours."""

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
    """An error: gRPC's status, and what was said."""

    status: str
    sentence: str


def ask(
    address: str,
    video: bytes,
    *,
    top_k: int | None = None,
    min_confidence: float | None = None,
    model: object = None,
    timeout_s: float | None = 120,
) -> Answer | Refusal:
    """Ask `recognize_sign` about a video file's bytes."""
    with tritonclient.grpc.InferenceServerClient(address) as client:
        return ask_with(client, inputs(video, top_k, min_confidence), model, timeout_s)


def ask_with(
    client: tritonclient.grpc.InferenceServerClient,
    tensors: Sequence[tritonclient.grpc.InferInput],
    model: object = None,
    timeout_s: float | None = 120,
) -> Answer | Refusal:
    """Ask `recognize_sign` with these inputs."""
    parameters = None if model is None else {"model": model}
    try:
        result = client.infer("recognize_sign", list(tensors), parameters=parameters, client_timeout=timeout_s)
    except InferenceServerException as exc:
        return refusal(exc)
    return answer(result)


def listen(address: str, video: bytes, *, model: str | None = None, top_k: int | None = None) -> list[Answer | Refusal]:
    """Ask `recognize_sign_stream`: all responses until the final one."""
    came: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(address) as client:
        # So that an error comes with its status, and ends the stream.
        client.start_stream(lambda result, error: came.put((result, error)), headers={"triton_grpc_error": "true"})
        client.async_stream_infer(
            "recognize_sign_stream",
            inputs(video, top_k),
            parameters=None if model is None else {"model": model},
            enable_empty_final_response=True,
        )
        heard: list[Answer | Refusal] = []
        while True:
            result, error = came.get(timeout=120)
            if error is not None:
                return [*heard, refusal(error)]
            if result.get_response().outputs:
                heard.append(answer(result))
            if result.get_response().parameters["triton_final_response"].bool_param:
                return heard


def inputs(
    video: bytes, top_k: int | None = None, min_confidence: float | None = None
) -> list[tritonclient.grpc.InferInput]:
    """The tensors of a request."""
    tensors = [tensor("VIDEO", np.array([video], np.object_), "BYTES")]
    if top_k is not None:
        tensors.append(tensor("TOP_K", np.array([top_k], np.int32), "INT32"))
    if min_confidence is not None:
        tensors.append(tensor("MIN_CONFIDENCE", np.array([min_confidence], np.float32), "FP32"))
    return tensors


def tensor(name: str, values: np.ndarray, datatype: str) -> tritonclient.grpc.InferInput:
    """One input."""
    given = tritonclient.grpc.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given


def answer(result: Any) -> Answer:
    """A response's outputs."""

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


def refusal(error: Any) -> Refusal:
    """An error's status, whatever carries it, and its sentence."""
    return Refusal((error.status() or "").removeprefix("StatusCode."), error.message())
