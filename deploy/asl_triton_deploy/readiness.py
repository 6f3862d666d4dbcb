"""Checks a Triton's models: their state over HTTP, errors in its log, and whether they answer."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np

from asl_triton.errors import ServerError
from asl_triton.models.golden import render_golden
from asl_triton.models.served import FRAMES, LOGITS, PRESET_PARAMETER
from asl_triton.presets import Preset
from asl_triton.transport.error_mapping import shorten_message
from asl_triton.video.preprocessing import normalize

REQUEST_TIMEOUT_S = 10.0
INFERENCE_TIMEOUT_S = 20.0  # a server with a full queue is busy, not dead
MAX_REASON_CHARS = 500
N_TAIL_LINES = 10


@dataclass(frozen=True)
class ModelState:
    """A model in Triton's repository index. `state` is `READY`, `LOADING`, `UNAVAILABLE`, or empty."""

    name: str
    state: str
    reason: str


def server_name(host: str, port: int) -> str | None:
    """Return the id of the Triton that answers on this port, or None if none answers."""
    body = _ask(host, port, "GET", "/v2")
    try:
        return None if body is None else str(json.loads(body)["name"])
    except (ValueError, KeyError, TypeError):
        return None  # something other than Triton answers


def is_ready(host: str, port: int) -> bool:
    """Whether Triton reports that it and all of its models are ready."""
    return _ask(host, port, "GET", "/v2/health/ready") is not None


def model_states(host: str, port: int) -> list[ModelState] | None:
    """Return the state of every model, or None if Triton does not answer yet."""
    body = _ask(host, port, "POST", "/v2/repository/index")
    if body is None:
        return None
    return [ModelState(row["name"], row.get("state", ""), row.get("reason", "")) for row in json.loads(body)]


def check_answers(host: str, port: int, model: str, headers: Mapping[str, str] | None = None) -> None:
    """Send one of our models a tiny clip, the beginning of the golden one. Other models are skipped.

    Triton itself reports a model as ready even if its process is dead. A model that does not answer in time is taken to
    be busy.

    Raises:
        ServerError: the model returns an error or logits that are not finite, or no Triton answers.
    """
    try:
        status, body = _exchange(host, port, "GET", f"/v2/models/{model}/config", headers=headers)
        config = json.loads(body) if status == 200 else {}
        preset = config.get("parameters", {}).get(PRESET_PARAMETER, {}).get("string_value")
        if status == 200 and preset is None:
            return
        if status != 200:
            raise ServerError(f"cannot read the configuration of {model}: {_reason(body)}")
        request, body_headers = _build_tiny_request(config, Preset.from_json(preset))
        path = f"/v2/models/{model}/infer"
        status, body = _exchange(host, port, "POST", path, request, {**body_headers, **(headers or {})})
    except TimeoutError:
        return
    except (OSError, HTTPException, ValueError) as exc:
        raise ServerError(f"no Triton answers at {host}:{port}: {exc}") from exc
    if status in (429, 503):  # its queue is full
        return
    if status != 200:
        raise ServerError(f"{model} returned an error: {_reason(body)}")
    logits = next(output["data"] for output in json.loads(body)["outputs"] if output["name"] == LOGITS)
    # `asl-triton doctor` checks whether they are right, or missing (NumPy 2), and says what to do.
    if not all(isinstance(logit, int | float) and math.isfinite(logit) for logit in logits):
        raise ServerError(f"{model} returned logits that are not finite")


def _build_tiny_request(config: Mapping[str, Any], preset: Preset) -> tuple[bytes, dict[str, str]]:
    """Build an inference request with binary data, and its headers
    (https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md)."""
    clip = render_golden(preset.min_frames)
    is_uint8 = config["input"][0]["data_type"] == "TYPE_UINT8"
    tensor = np.ascontiguousarray((clip if is_uint8 else normalize(clip, preset))[None])
    given = {
        "name": FRAMES,
        "shape": list(tensor.shape),
        "datatype": "UINT8" if is_uint8 else "FP32",
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    head = json.dumps({"inputs": [given], "outputs": [{"name": LOGITS}]}).encode()
    return head + tensor.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def _reason(body: bytes) -> str:
    """Return the message in Triton's response to a failed request."""
    try:
        return _one_line(str(json.loads(body)["error"]))
    except (ValueError, KeyError, TypeError):
        return _one_line(body.decode(errors="replace")) or "Triton gives no reason"


def explain(failed: Iterable[ModelState], log: str) -> str:
    """Say in one line which models failed and why: `name: reason; name: reason`."""
    return "; ".join(f"{model.name}: {_one_line(model.reason or _reason_in_log(model.name, log))}" for model in failed)


def last_error(log: str) -> str:
    """Return the last error in Triton's log, or else its last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"E\d{4} |error:|cannot run ", line)]
    line = (errors or lines or ["nothing in its log"])[-1]
    # E1122 11:08:53.698364 3987 main.cc:257] "failed to start HTTP service"
    return _one_line(re.sub(r"^E\d{4} \S+\s+\d+ \S+\] ", "", line).strip('" '))


def tail(log: str) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.splitlines()[-N_TAIL_LINES:])


def _ask(host: str, port: int, method: str, path: str) -> bytes | None:
    try:
        status, body = _exchange(host, port, method, path, timeout_s=REQUEST_TIMEOUT_S)
    except (OSError, HTTPException):
        return None
    return body if status == 200 else None


def _exchange(
    host: str,
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = INFERENCE_TIMEOUT_S,
) -> tuple[int, bytes]:
    """Send a request and return the status and the body of the response."""
    connection = HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _reason_in_log(name: str, log: str) -> str:
    """Find out why Triton rejected a configuration, which the index does not say."""
    refused = re.search(rf"Poll failed for model directory '{re.escape(name)}': (.*)\"", log)
    if refused is None:
        return "Triton gives no reason"
    # If the text cannot be parsed, protobuf reports it in the line before.
    parse_error = re.search(r"Error parsing text-format \S+ (.*)\s*\Z", log[: log.rfind("\n", 0, refused.start())])
    return f"{refused.group(1)}: {parse_error.group(1)}" if parse_error else refused.group(1)


def _one_line(reason: str) -> str:
    """Return a reason on one line, without the Python stub's stack and Triton's status code."""
    text = reason.split("\n\nAt:")[0].removeprefix("Internal: ").removeprefix("Invalid argument: ")
    text = shorten_message(text).rstrip(".")
    return text if len(text) <= MAX_REASON_CHARS else text[:MAX_REASON_CHARS] + "..."
