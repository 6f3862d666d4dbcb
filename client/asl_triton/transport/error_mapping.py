"""What gRPC and Triton say when there is no answer: as one of our errors, and whether to send the request again."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from tritonclient.utils import InferenceServerException

from asl_triton.errors import AslTritonError, BusyError, ConnectionLostError, ContractError, ServerError, VideoError
from asl_triton.transport.security import Security
from asl_triton.transport.tls_errors import explain_certificate, explain_closed_connection

TOO_LARGE = "larger than max"  # gRPC, of a message beyond a limit
QUEUE_FULL, QUEUED_TOO_LONG = "queue size", "Request timeout expired"  # Triton, of a request
RESTRICTED = "restricted"  # Triton, of a call without the right key
NOT_READY = "Server is not ready"  # our transport, of a server that is up but not ready
# A Triton that is stopping: it refuses, while others answer.
STOPPING = re.compile(f"Server is stopping|has no available versions|{NOT_READY}")
# Triton's PyTorch backend: lines of traceback, then the class of the error and what it says.
TORCHSCRIPT_ERROR = re.compile(r"TorchScript interpreter\..*?^(?:builtins\.)?\w+: (.*)\Z", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """Maps a gRPC status, or a pattern found in its message, to an error; with both, both must fit.

    `sentence` may name {address}, {model}, {request} (its id, in brackets), {said} (gRPC's words), {short} (their
    beginning), {timeout_s} and {why} (what `explain` finds).
    """

    error: type[AslTritonError]
    sentence: str
    status: str | None = None
    pattern: str | re.Pattern[str] = ""
    explain: Callable[[str, Security], str] = lambda said, security: ""

    def fits(self, status: str, said: str) -> bool:
        """Whether the rule is for this status and these words."""
        return self.status in (None, status) and re.search(self.pattern, said) is not None


def explain_refusal(said: str, security: Security) -> str:
    """What to do about a call that a server wants a key for."""
    return "it wants an API key (--api-key)" if security.api_key is None else "give the right --api-key"


REFUSED = "the server at {address} refused the call{request}: {why} [{said}]"
BUSY = "{model} on {address} is too busy{request}: {said}. Try again later, or add servers"
LEAVING = "the server at {address} is stopping{request}: {said}. Try again when it is back, or name others (--server)"
CONTRACT = "{model} on {address} cannot answer this{request}: {said}"

# The first that fits.
RULES = (
    Rule(ServerError, REFUSED, pattern=RESTRICTED, explain=explain_refusal),
    Rule(ServerError, REFUSED, "UNAUTHENTICATED", explain=explain_refusal),
    Rule(ServerError, REFUSED, "PERMISSION_DENIED", explain=explain_refusal),
    Rule(
        ServerError,
        "the server at {address}, or a proxy before it, takes no requests as large as {model}'s{request}: {said}. "
        "Raise its limit on the size of gRPC messages",
        pattern=TOO_LARGE,
    ),
    Rule(
        BusyError,
        "{model} on {address} is too busy{request}: the request waited for longer than its queue allows. Try again "
        "later, or add servers",
        pattern=QUEUED_TOO_LONG,
    ),
    Rule(BusyError, BUSY, "UNAVAILABLE", QUEUE_FULL),
    Rule(BusyError, BUSY, "RESOURCE_EXHAUSTED"),
    Rule(
        ServerError,
        "the server at {address} is still starting, or a model failed to load{request}: see its log",
        pattern=NOT_READY,
    ),
    Rule(BusyError, LEAVING, "CANCELLED"),  # what a stopping server says to requests that it had not begun
    Rule(BusyError, LEAVING, pattern=STOPPING),
    Rule(
        ServerError,
        "{address} gave no answer within {timeout_s:g} s{request}: it is overloaded or stuck. Raise --timeout, or see "
        "its log",
        "DEADLINE_EXCEEDED",
    ),
    # `recognize_sign` refuses a video; its message begins with the name of its input.
    Rule(VideoError, "{said}", "INVALID_ARGUMENT", "^VIDEO "),
    Rule(ContractError, CONTRACT, "NOT_FOUND"),
    Rule(ContractError, CONTRACT, "INVALID_ARGUMENT"),
    Rule(ContractError, CONTRACT, pattern="unknown model"),
    Rule(
        ServerError,
        "what answers at {address} is not Triton{request}: name another server (--server host:port). [{said}]",
        "UNIMPLEMENTED",
    ),
    Rule(
        ServerError,
        "no TLS with {address}{request}: {why}. [{short}]",
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
        "no server answers at {address}: start one (asl-triton serve), or name another's gRPC port (--server "
        "host:8001; 8000 is HTTP's){request}. [{short}]",
        "UNAVAILABLE",
    ),
    Rule(ServerError, "{model} on {address} failed{request}: {said}"),
)


def translate_error(
    exc: InferenceServerException,
    address: str,
    model: str,
    timeout_s: float,
    request_id: str = "",
    security: Security | None = None,
) -> AslTritonError:
    """The error for what the server at `address`, or the way to it, said about a request.

    Where a server closed the connection, this looks why, which may take seconds.
    """
    status, said = get_status(exc), shorten_message(str(exc.message()))
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
    """Triton's message in one line; of an error in a TorchScript network, what follows its traceback."""
    error = TORCHSCRIPT_ERROR.search(message)
    return " ".join((error.group(1) if error else message).split())


def get_status(exc: BaseException) -> str:
    """gRPC's status, such as UNAVAILABLE; "" where there is none."""
    return (exc.status() or "").removeprefix("StatusCode.") if isinstance(exc, InferenceServerException) else ""


def get_message(exc: BaseException) -> str:
    """What gRPC or Triton said; "" where they did not say it."""
    return str(exc.message()) if isinstance(exc, InferenceServerException) else ""


def is_stopping(exc: BaseException) -> bool:
    """Whether a server refused because it is stopping or starting: another one may answer at once."""
    return STOPPING.search(get_message(exc)) is not None


def is_retryable(exc: BaseException) -> bool:
    """Whether the same request may be answered in a moment: the server was away or stopping, or its queue full."""
    if re.search(f"{RESTRICTED}|{TOO_LARGE}", get_message(exc)):
        return False
    # CANCELLED is what a server says to requests that it had not begun when it stopped.
    return is_stopping(exc) or get_status(exc) in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED")


def is_rejected(exc: BaseException) -> bool:
    """Whether the server itself would not take a request, and so no longer reads it."""
    if re.search(f"{QUEUE_FULL}|{QUEUED_TOO_LONG}", get_message(exc)):
        return True
    return get_status(exc) in ("INVALID_ARGUMENT", "NOT_FOUND")
