"""What is wrong with TLS, and what to do: gRPC only says that it failed, or that the server closed the connection."""

import contextlib
import re
import socket
from pathlib import Path

from asl_triton.transport.security import Security

with contextlib.suppress(ImportError):  # the Python inside Triton's stub is a build of its own, which may not load it
    import ssl

WHERE = re.compile(r"ipv4:([\d.]+):(\d+)|ipv6:(?:%5B|\[)([\da-fA-F:.]+)(?:%5D|\]):(\d+)")
PATIENCE_S = 3.0


def explain_certificate(said: str, security: Security) -> str:
    """What is wrong with the server's certificate, from gRPC's words."""
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


def explain_closed_connection(said: str, security: Security) -> str:
    """Why a server may have closed the connection. Tries a handshake where TLS may be why, for up to `PATIENCE_S`."""
    place = peer_address(said)
    if place is None:  # it was open before
        return "it stopped"
    if not security.is_tls:
        if speaks_tls(place):
            return (
                "it speaks TLS: give its authority (--tls-ca), and our certificate where it asks for one (--tls-cert)"
            )
        return "it stopped, or this is not Triton's gRPC port (8001; 8000 is HTTP's)"
    if security.tls_cert is None or security.tls_key is None:
        return "it wants a certificate of ours (--tls-cert with --tls-key), or it stopped"
    if has_expired(security.tls_cert, security.tls_key):
        return f"our certificate {security.tls_cert} (--tls-cert) has expired: renew it"
    return (
        f"it trusts no authority that signed our certificate {security.tls_cert} (--tls-cert): take one of its own "
        "authority; or it stopped"
    )


def peer_address(said: str) -> tuple[str, int] | None:
    """The address and port that gRPC's words name; None where they name none."""
    found = WHERE.search(said)
    if found is None:
        return None
    ipv4, port4, ipv6, port6 = found.groups()
    return (ipv4, int(port4)) if ipv4 else (ipv6, int(port6))


def speaks_tls(place: tuple[str, int]) -> bool:
    """Whether what listens there answers a TLS handshake. Sends nothing, so any certificate will do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(place, PATIENCE_S) as connection, context.wrap_socket(connection):
            return True
    except OSError:
        return False


def has_expired(certificate: Path, key: Path) -> bool:
    """Whether our certificate has expired: a handshake with itself, in memory, lets OpenSSL judge."""
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
