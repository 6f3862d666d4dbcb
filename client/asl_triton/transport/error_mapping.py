"""What gRPC and Triton say when there is no answer, as one sentence; and whether to ask again."""

from dataclasses import dataclass, field

from tritonclient.utils import InferenceServerException

from asl_triton.errors import AslTritonError, BusyError, ConnectionLostError, ContractError, ServerError, VideoError
from asl_triton.transport.security import Security
from asl_triton.transport.tls_probe import has_expired, peer_address, speaks_tls

TOO_LARGE = "larger than max"  # in what gRPC says of a message beyond a limit
QUEUE_FULL, QUEUED_TOO_LONG = "queue size", "Request timeout expired"  # in what Triton says of a request
NOT_READY = "Server is not ready"  # in what the transport says for a server that is up, and not yet or no more there
# What a Triton says that is stopping: it refuses, while others answer.
LEAVING = ("Server is stopping", "has no available versions", NOT_READY)


@dataclass(frozen=True)
class Fault:
    """One exception of tritonclient's: gRPC's status, what was said, and about which request."""

    status: str
    said: str
    address: str
    model: str = ""
    timeout_s: float = 0.0
    request_id: str = ""
    security: Security = field(default_factory=Security)

    @property
    def asked(self) -> str:
        """The request, for a sentence."""
        return f" (request {self.request_id})" if self.request_id else ""


def get_status(exc: BaseException) -> str:
    """gRPC's status, such as UNAVAILABLE; nothing where there is none."""
    return (exc.status() or "").removeprefix("StatusCode.") if isinstance(exc, InferenceServerException) else ""


def is_stopping(exc: BaseException) -> bool:
    """Whether a server refused because it is stopping or starting: another one may answer at once."""
    return isinstance(exc, InferenceServerException) and any(words in str(exc.message()) for words in LEAVING)


def is_retryable(exc: BaseException) -> bool:
    """Whether the same request may be answered in a moment: the server was away or stopping, or its queue full."""
    return (
        # CANCELLED is what a server says to requests that it had not begun when it stopped.
        (get_status(exc) in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED") or is_stopping(exc))
        and isinstance(exc, InferenceServerException)
        and not any(words in str(exc.message()) for words in ("restricted", TOO_LARGE))
    )


def is_rejected(exc: InferenceServerException) -> bool:
    """Whether the server itself would not take a request, and so no longer reads it."""
    refused_it = get_status(exc) in ("INVALID_ARGUMENT", "NOT_FOUND")
    return refused_it or any(words in str(exc.message()) for words in (QUEUE_FULL, QUEUED_TOO_LONG))


def translate_error(
    exc: InferenceServerException,
    address: str,
    model: str,
    timeout_s: float,
    request_id: str = "",
    security: Security | None = None,
) -> AslTritonError:
    """The sentence for what the server, or the way to it, said. Where a server closed the connection, this looks why:
    that may take seconds."""
    said = " ".join(str(exc.message()).split())
    fault = Fault(get_status(exc), said, address, model, timeout_s, request_id, security or Security())
    return (
        _auth_error(fault)
        or _overload_error(fault)
        or _deadline_error(fault)
        or _video_error(fault)
        or _contract_error(fault)
        or _connection_error(fault)
        or _other_error(fault)
    )


def _auth_error(fault: Fault) -> AslTritonError | None:
    """Where the server wants a key."""
    if "restricted" not in fault.said and fault.status not in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return None
    what = "it wants an API key (--api-key)" if fault.security.api_key is None else "give the right --api-key"
    return ServerError(f"the server at {fault.address} refused the call{fault.asked}: {what} [{fault.said}]")


def _overload_error(fault: Fault) -> AslTritonError | None:
    """Where there is no room for the request."""
    if TOO_LARGE in fault.said:
        return ServerError(
            f"the server at {fault.address}, or a proxy before it, takes no requests as large as "
            f"{fault.model}'s{fault.asked}: {fault.said}. Raise its limit on the size of gRPC messages"
        )
    if QUEUED_TOO_LONG in fault.said:
        return BusyError(
            f"{fault.model} on {fault.address} is too busy{fault.asked}: the request waited for longer than its queue "
            "allows. Try again later, or add servers"
        )
    if (fault.status == "UNAVAILABLE" and QUEUE_FULL in fault.said) or fault.status == "RESOURCE_EXHAUSTED":
        return BusyError(
            f"{fault.model} on {fault.address} is too busy{fault.asked}: {fault.said}. Try again later, or add servers"
        )
    if NOT_READY in fault.said:
        return ServerError(
            f"the server at {fault.address} is still starting, or a model failed to load{fault.asked}: see its log"
        )
    if fault.status == "CANCELLED" or any(words in fault.said for words in LEAVING):
        return BusyError(
            f"the server at {fault.address} is stopping{fault.asked}: {fault.said}. Try again when it is back, or name "
            "others (--server)"
        )
    return None


def _deadline_error(fault: Fault) -> AslTritonError | None:
    """Where time ran out."""
    if fault.status != "DEADLINE_EXCEEDED":
        return None
    return ServerError(
        f"{fault.address} gave no answer within {fault.timeout_s:g} s{fault.asked}: it is overloaded or stuck. "
        "Raise --timeout, or see its log"
    )


def _video_error(fault: Fault) -> AslTritonError | None:
    """Where a model that takes whole videos refused one: what is said begins with the name of its input."""
    if fault.status != "INVALID_ARGUMENT" or not fault.said.startswith("VIDEO "):
        return None
    return VideoError(fault.said)


def _contract_error(fault: Fault) -> AslTritonError | None:
    """Where the server cannot answer that question."""
    if fault.status in ("NOT_FOUND", "INVALID_ARGUMENT") or "unknown model" in fault.said:
        return ContractError(
            f"{fault.model or 'the model'} on {fault.address} cannot answer this{fault.asked}: {fault.said}"
        )
    if fault.status == "UNIMPLEMENTED":
        return ServerError(
            f"what answers at {fault.address} is no Triton{fault.asked}: name another (--server host:port). "
            f"[{fault.said}]"
        )
    return None


def _connection_error(fault: Fault) -> AslTritonError | None:
    """Where no connection came about, or it broke."""
    if "handshak" in fault.said or "erification" in fault.said:
        return ServerError(
            f"no TLS with {fault.address}{fault.asked}: {_explain_certificate(fault.said)}. [{shorten(fault.said)}]"
        )
    if fault.status != "UNAVAILABLE":
        return None
    if "Socket closed" in fault.said:
        return ConnectionLostError(
            f"the server at {fault.address} closed the connection{fault.asked}: {_explain_closed_connection(fault)}. "
            f"[{shorten(fault.said)}]"
        )
    return ConnectionLostError(
        f"no server answers at {fault.address}: start one (asl-triton serve), or name another's gRPC port "
        f"(--server host:8001; 8000 is HTTP's){fault.asked}. [{shorten(fault.said)}]"
    )


def _other_error(fault: Fault) -> AslTritonError:
    """Anything else."""
    return ServerError(f"{fault.model or 'the server'} on {fault.address} failed{fault.asked}: {fault.said}")


def _explain_certificate(said: str) -> str:
    """What is wrong with the server's certificate, and what to do."""
    if "has expired" in said:
        return "its certificate has expired: renew it where the server runs"
    if "not yet valid" in said:
        return "its certificate is not valid yet: see whether both clocks are right"
    if "Hostname" in said:
        return (
            "its certificate is for another name: ask it by a name that the certificate bears (--server), or say "
            "which that is (--tls-server-name)"
        )
    if "issuer certificate" in said or "self signed" in said or "self-signed" in said:
        return "no authority that we trust has signed its certificate: give the one that has (--tls-ca)"
    if "WRONG_VERSION_NUMBER" in said:
        return "it speaks none: leave out --tls, --tls-ca and --tls-cert"
    return (
        "give the authority that signed its certificate (--tls-ca), name it as the certificate does, or leave TLS out "
        "where it has none"
    )


def _explain_closed_connection(fault: Fault) -> str:
    """Why a server may have closed the connection, and what to do."""
    security, place = fault.security, peer_address(fault.said)
    stopped = "it stopped, or this is not Triton's gRPC port (8001; 8000 is HTTP's)"
    if place is None:  # it was open before
        return "it stopped"
    if not security.is_tls:
        wants_tls = (
            "it speaks TLS: give its authority (--tls-ca), and our certificate where it asks for one (--tls-cert)"
        )
        return wants_tls if speaks_tls(place) else stopped
    if security.tls_cert is None or security.tls_key is None:
        return "it wants a certificate of ours (--tls-cert with --tls-key), or it stopped"
    if has_expired(security.tls_cert, security.tls_key):
        return f"our certificate {security.tls_cert} (--tls-cert) has expired: renew it"
    return (
        f"it trusts no authority that signed our certificate {security.tls_cert} (--tls-cert): take one of its own "
        "authority; or it stopped"
    )


def shorten(said: str) -> str:
    """What was said, where it may be long."""
    return said if len(said) <= 250 else said[:250] + "..."
