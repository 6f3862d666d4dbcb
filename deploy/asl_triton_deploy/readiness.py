"""What a starting Triton says about its models, over HTTP and in its log."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

REQUEST_TIMEOUT_S = 10.0
MAX_REASON_CHARS = 500
N_TAIL_LINES = 10


@dataclass(frozen=True)
class ModelState:
    """One model of Triton's repository index: `READY`, `LOADING`, `UNAVAILABLE`, or no state at all."""

    name: str
    state: str
    reason: str


def server_name(host: str, port: int) -> str | None:
    """The id of the Triton that answers on this port, or None while none does."""
    body = _ask(host, port, "GET", "/v2")
    try:
        return None if body is None else str(json.loads(body)["name"])
    except (ValueError, KeyError, TypeError):
        return None  # Something else than a Triton answers.


def is_ready(host: str, port: int) -> bool:
    """Whether Triton says that it and all of its models answer."""
    return _ask(host, port, "GET", "/v2/health/ready") is not None


def model_states(host: str, port: int) -> list[ModelState] | None:
    """The state of every model, or None while Triton does not answer yet."""
    body = _ask(host, port, "POST", "/v2/repository/index")
    if body is None:
        return None
    return [ModelState(row["name"], row.get("state", ""), row.get("reason", "")) for row in json.loads(body)]


def explain(failed: Iterable[ModelState], log: str) -> str:
    """Which models failed and why, in one line: `name: reason; name: reason`."""
    return "; ".join(f"{model.name}: {_one_line(model.reason or _reason_in_log(model.name, log))}" for model in failed)


def last_error(log: str) -> str:
    """The last error in Triton's log, or its last line, or nothing."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"E\d{4} |error:|cannot run ", line)]
    line = (errors or lines or ["nothing in its log"])[-1]
    # E1122 11:08:53.698364 3987 main.cc:257] "failed to start HTTP service"
    return _one_line(re.sub(r"^E\d{4} \S+\s+\d+ \S+\] ", "", line).strip('" '))


def tail(log: str) -> str:
    """The last lines of a log."""
    return "\n".join(log.splitlines()[-N_TAIL_LINES:])


def _ask(host: str, port: int, method: str, path: str) -> bytes | None:
    connection = HTTPConnection(host, port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        return body if response.status == 200 else None
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _reason_in_log(name: str, log: str) -> str:
    """Why Triton refused a configuration, which the index does not say."""
    refused = re.search(rf"Poll failed for model directory '{re.escape(name)}': (.*)\"", log)
    if refused is None:
        return "Triton gives no reason"
    # Where the text is no valid configuration, protobuf says so in the line before.
    parse_error = re.search(r"Error parsing text-format \S+ (.*)\s*\Z", log[: log.rfind("\n", 0, refused.start())])
    return f"{refused.group(1)}: {parse_error.group(1)}" if parse_error else refused.group(1)


def _one_line(reason: str) -> str:
    """A reason without the Python stub's stack and Triton's status code."""
    text = reason.split("\n\nAt:")[0].removeprefix("Internal: ").removeprefix("Invalid argument: ")
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= MAX_REASON_CHARS else text[:MAX_REASON_CHARS] + "..."
