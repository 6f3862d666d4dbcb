"""Why a server closed the connection, found out with a TLS handshake of our own: gRPC says no more than that it did."""

import contextlib
import re
import socket
from pathlib import Path

with contextlib.suppress(ImportError):  # the Python inside Triton's stub is a build of its own, which may not load it
    import ssl

WHERE = re.compile(r"ipv4:([\d.]+):(\d+)|ipv6:(?:%5B|\[)([\da-fA-F:.]+)(?:%5D|\]):(\d+)")
PATIENCE_S = 3.0


def peer_address(said: str) -> tuple[str, int] | None:
    """The address and port that gRPC's words name, where they do."""
    found = WHERE.search(said)
    if found is None:
        return None
    ipv4, port4, ipv6, port6 = found.groups()
    return (ipv4, int(port4)) if ipv4 else (ipv6, int(port6))


def speaks_tls(place: tuple[str, int]) -> bool:
    """Whether what listens there answers a TLS handshake. Sends nothing, so it does not matter whom it trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(place, PATIENCE_S) as connection, context.wrap_socket(connection):
            return True
    except OSError:
        return False


def has_expired(certificate: Path, key: Path) -> bool:
    """Whether a certificate of ours is past its last day, as OpenSSL judges it: it is shown to itself."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(certificate, key)
    client.load_verify_locations(certificate)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusted without the authority that signed it
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    try:
        for side in (ours, theirs, ours):  # hello, certificate, verdict
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as exc:
        return "expired" in exc.verify_message
    return False
