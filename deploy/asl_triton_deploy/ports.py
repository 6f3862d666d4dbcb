"""Checks or chooses the ports that Triton listens on."""

import errno
import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from asl_triton.errors import ServerError

# Below Linux's range for outgoing connections, so that a chosen port is still free once Triton has loaded its models.
CHOSEN_PORTS = range(20_000, 32_000)
N_TRIES = 100


def ipv4_address(host: str) -> str:
    """Resolve `host` to an address to bind to, or raise ServerError."""
    try:
        return socket.gethostbyname(host)
    except OSError as exc:
        raise ServerError(f"cannot bind to {host!r}: not a host name or IPv4 address that this machine knows") from exc


def format_reachable_address(address: str) -> str:
    """Return the address to connect to for a server bound to `address`."""
    return "127.0.0.1" if address == "0.0.0.0" else address


def claim_ports(address: str, wanted: Mapping[str, int | None]) -> dict[str, int]:
    """Check that the port wanted for each protocol is available on `address`, and choose free ones for None.

    Raises:
        ServerError: a port is in use, given twice, or not allowed, or the address belongs to another machine.
    """
    given = [port for port in wanted.values() if port is not None]
    for number in given:
        if not 0 < number < 65_536:
            raise ServerError(f"{number} is not a port: give one between 1 and 65535")
        if given.count(number) > 1:
            raise ServerError(f"port {number} is given twice: gRPC, HTTP and metrics each need their own")
    claimed: dict[str, int] = {}
    # Keep them bound until all are found, so that none is chosen twice.
    with ExitStack() as held:
        for protocol, port in wanted.items():
            claimed[protocol] = _bind(held, address, protocol, port) if port else _choose(held, address, given)
    return claimed


def _bind(held: ExitStack, address: str, protocol: str, port: int) -> int:
    listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # Ports with connections in TIME_WAIT count as free; ports with a listener do not.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as exc:
        raise ServerError(_problem(exc, address, port, f"--{protocol.lower()}-port")) from exc
    return port


def _choose(held: ExitStack, address: str, given: list[int]) -> int:
    for port in random.sample([port for port in CHOSEN_PORTS if port not in given], N_TRIES):
        listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        try:
            listener.bind((address, port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise ServerError(_problem(exc, address, port, "a port")) from exc
        else:
            return port
    raise ServerError(
        f"no free port between {CHOSEN_PORTS.start} and {CHOSEN_PORTS.stop} on {address}: give one as an option"
    )


def _problem(exc: OSError, address: str, port: int, option: str) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"port {port} on {address} is in use, perhaps by another Triton: stop it, or give another {option}"
    if exc.errno == errno.EACCES:
        return f"port {port} needs root: give a {option} above 1023"
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"cannot bind to {address}: it is not an address of this machine"
    return f"cannot bind to port {port} on {address}: {exc.strerror}"
