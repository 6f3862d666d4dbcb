"""Translates errors of gRPC and Triton to our own, and decides whether to send the request again."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from tritonclient.utils import InferenceServerException

from asl_triton.errors import AslTritonError, BusyError, ConnectionLostError, ContractError, ServerError, VideoError
from asl_triton.transport.security import Security
from asl_triton.transport.tls_errors import explain_certificate, explain_closed_connection

# What a failed call raises: tritonclient's own error, or gRPC's from the calls that we make without it.
REQUEST_ERRORS = (InferenceServerException, grpc.aio.AioRpcError)

TOO_LARGE = "larger than max"  # from gRPC, if a message exceeds a limit
QUEUE_FULL, QUEUED_TOO_LONG = "queue size", "Request timeout expired"  # from Triton, if it rejects a request
RESTRICTED = "restricted"  # from Triton, if a call does not have the right key
NOT_READY = "Server is not ready"  # from our transport, if a server is up but not ready
# From a Triton that is stopping and refuses requests, while other servers may answer.
STOPPING = re.compile(f"Server is stopping|has no available versions|{NOT_READY}")
# From Triton's PyTorch backend: lines of traceback, then the class of the error and its message.
TORCHSCRIPT_ERROR = re.compile(r"TorchScript interpreter\..*?^(?:builtins\.)?\w+: (.*)\Z", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """Maps a gRPC status or a pattern in the message to an error. If a rule has both, both must match.

    `sentence` may use {address}, {model}, {request} (its id in parentheses), {said} (gRPC's message), {short} (its
    beginning), {timeout_s} and {why} (the result of `explain`).
    """

    error: type[AslTritonError]
    sentence: str
    status: str | None = None
    pattern: str | re.Pattern[str] = ""
    explain: Callable[[str, Security], str] = lambda said, security: ""

    def fits(self, status: str, said: str) -> bool:
        """Whether the rule matches this status and message."""
        return self.status in (None, status) and re.search(self.pattern, said) is not None


def explain_refusal(said: str, security: Security) -> str:
    """Explain what to do about a call that requires an API key."""
    return "it requires an API key (--api-key)" if security.api_key is None else "the --api-key is incorrect"


REFUSED = "the server at {address} refused the call{request}: {why} [{said}]"
BUSY = "{model} on {address} is too busy{request}: {said}. Try again later, or add servers"
LEAVING = "the server at {address} is stopping{request}: {said}. Try again when it is back, or use another (--server)"
CONTRACT = "{model} on {address} cannot answer this{request}: {said}"

# The first rule that matches is used.
RULES = (
    Rule(ServerError, REFUSED, pattern=RESTRICTED, explain=explain_refusal),
    Rule(ServerError, REFUSED, "UNAUTHENTICATED", explain=explain_refusal),
    Rule(ServerError, REFUSED, "PERMISSION_DENIED", explain=explain_refusal),
    Rule(
        ServerError,
        "the server at {address}, or a proxy in front of it, rejects requests as large as those for {model}{request}: "
        "{said}. Raise its limit on the size of gRPC messages",
        pattern=TOO_LARGE,
    ),
    Rule(
        BusyError,
        "{model} on {address} is too busy{request}: the request waited longer than its queue allows. Try again later, "
        "or add servers",
        pattern=QUEUED_TOO_LONG,
    ),
    Rule(BusyError, BUSY, "UNAVAILABLE", QUEUE_FULL),
    Rule(BusyError, BUSY, "RESOURCE_EXHAUSTED"),
    Rule(
        ServerError,
        "the server at {address} is still starting, or a model failed to load{request}: check its log",
        pattern=NOT_READY,
    ),
    Rule(BusyError, LEAVING, "CANCELLED"),  # from a stopping server, for requests that it had not started
    Rule(BusyError, LEAVING, pattern=STOPPING),
    Rule(
        ServerError,
        "{address} did not answer within {timeout_s:g} s{request}: it is overloaded or stuck. Raise --timeout, or "
        "check its log",
        "DEADLINE_EXCEEDED",
    ),
    # `recognize_sign` rejected a video. Its message starts with the name of its input.
    Rule(VideoError, "{said}", "INVALID_ARGUMENT", "^VIDEO "),
    Rule(ContractError, CONTRACT, "NOT_FOUND"),
    Rule(ContractError, CONTRACT, "INVALID_ARGUMENT"),
    Rule(ContractError, CONTRACT, pattern="unknown model"),
    Rule(
        ServerError,
        "the server at {address} is not Triton{request}: use another one (--server host:port). [{said}]",
        "UNIMPLEMENTED",
    ),
    Rule(
        ServerError,
        "TLS with {address} failed{request}: {why}. [{short}]",
        pattern="handshak|erification",
        explain=explain_certificate,
    ),
    Rule(
        ConnectionLostError,
        "the server at {address} closed the connection{request}: {why}. [{short}]",
        "UNAVAILABLE",
        "Socket closed",
        explain_closed_connection,
    ),
    Rule(
        ConnectionLostError,
        "no server answers at {address}: start one (asl-triton serve), or give another server's gRPC port (--server "
        "host:8001; 8000 is HTTP){request}. [{short}]",
        "UNAVAILABLE",
    ),
    Rule(ServerError, "{model} on {address} failed{request}: {said}"),
)


def translate_error(
    exc: BaseException,
    address: str,
    model: str,
    timeout_s: float,
    request_id: str = "",
    security: Security | None = None,
) -> AslTritonError:
    """Translate one of `REQUEST_ERRORS`, from the server at `address` or from the connection to it.

    If the server closed the connection, this finds out why, which may take seconds.
    """
    status, said = get_status(exc), shorten_message(get_message(exc))
    rule = next(rule for rule in RULES if rule.fits(status, said))
    sentence = rule.sentence.format(
        address=address,
        model=model or ("the model" if rule.sentence == CONTRACT else "the server"),
        request=f" (request {request_id})" if request_id else "",
        said=said,
        short=said if len(said) <= 250 else said[:250] + "...",
        timeout_s=timeout_s,
        why=rule.explain(said, security or Security()),
    )
    return rule.error(sentence)


def shorten_message(message: str) -> str:
    """Put Triton's message on one line. For an error in a TorchScript network, keep only what follows the traceback."""
    error = TORCHSCRIPT_ERROR.search(message)
    return " ".join((error.group(1) if error else message).split())


def get_status(exc: BaseException) -> str:
    """Return gRPC's status, such as UNAVAILABLE, or "" if there is none."""
    if isinstance(exc, grpc.aio.AioRpcError):
        return str(exc.code().name)
    return (exc.status() or "").removeprefix("StatusCode.") if isinstance(exc, InferenceServerException) else ""


def get_message(exc: BaseException) -> str:
    """Return the message of gRPC or Triton, or "" for other exceptions."""
    if isinstance(exc, grpc.aio.AioRpcError):
        return exc.details() or ""
    return str(exc.message()) if isinstance(exc, InferenceServerException) else ""


def is_stopping(exc: BaseException) -> bool:
    """Whether a server refused because it is stopping or starting, so that another one may answer at once."""
    return STOPPING.search(get_message(exc)) is not None


def is_retryable(exc: BaseException) -> bool:
    """Whether the same request may succeed in a moment: the server was down or stopping, or its queue was full."""
    if re.search(f"{RESTRICTED}|{TOO_LARGE}", get_message(exc)):
        return False
    # CANCELLED is a server's status for requests that it had not started when it stopped.
    return is_stopping(exc) or get_status(exc) in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED")


def is_rejected(exc: BaseException) -> bool:
    """Whether the server itself rejected a request, and so does not read it any longer."""
    if re.search(f"{QUEUE_FULL}|{QUEUED_TOO_LONG}", get_message(exc)):
        return True
    return get_status(exc) in ("INVALID_ARGUMENT", "NOT_FOUND")
