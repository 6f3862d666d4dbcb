"""Chooses how requests are sent to a server."""

from asl_triton.errors import ServerError
from asl_triton.transport.endpoints import DEFAULT_SERVER
from asl_triton.transport.security import Security
from asl_triton.transport.shm import SharedMemoryTransport, Sharing, unavailable_reason
from asl_triton.transport.triton_grpc import DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT_S, GrpcTransport


def make_transport(
    address: str = DEFAULT_SERVER,
    *,
    security: Security | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    in_flight: int = DEFAULT_IN_FLIGHT,
    resend: bool = True,
    shared_memory: Sharing = "auto",
) -> GrpcTransport | SharedMemoryTransport:
    """Create a transport to one or several Tritons, with the arguments of `GrpcTransport`.

    `shared_memory` says how large inputs are sent to a server on this machine: "shm" uses shared memory, "grpc" puts
    them into the message, as for all other servers, and "auto" uses shared memory if the server allows it. Answers,
    errors and retries are the same.

    Raises:
        ServerError: the address is invalid, or does not support shared memory with "shm". AslTritonError: the servers
            have several names and TLS needs one.
    """
    transport = GrpcTransport(address, security=security, timeout_s=timeout_s, in_flight=in_flight, resend=resend)
    if shared_memory == "grpc":
        return transport
    reason = unavailable_reason(shared_memory, transport.addresses)
    if not reason:
        return SharedMemoryTransport(transport, required=shared_memory == "shm")
    if shared_memory == "shm":
        raise ServerError(reason)
    return transport
