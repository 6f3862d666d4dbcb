"""Explains TLS problems, because gRPC only says that TLS failed or that the server closed the connection."""

import contextlib
import re
import socket
from pathlib import Path

from asl_triton.transport.security import Security

with contextlib.suppress(ImportError):  # Triton's stub contains its own build of Python, which may be unable to load it
    import ssl

WHERE = re.compile(r"ipv4:([\d.]+):(\d+)|ipv6:(?:%5B|\[)([\da-fA-F:.]+)(?:%5D|\]):(\d+)")
PATIENCE_S = 3.0


def explain_certificate(said: str, security: Security) -> str:
    """Explain what is wrong with the server's certificate, based on gRPC's message."""
    if "has expired" in said:
        return "its certificate has expired: renew it where the server runs"
    if "not yet valid" in said:
        return "its certificate is not valid yet: check the clocks of both machines"
    if "Hostname" in said:
        return (
            "its certificate is for another name: use a name from the certificate in the address (--server), or give "
            "that name with --tls-server-name"
        )
    if "issuer certificate" in said or "self signed" in said or "self-signed" in said:
        return "its certificate is not signed by a trusted authority: give the authority that signed it (--tls-ca)"
    if "WRONG_VERSION_NUMBER" in said:
        return "the server does not use TLS: leave out --tls, --tls-ca and --tls-cert"
    return (
        "give the authority that signed its certificate (--tls-ca), address it by a name in the certificate, or leave "
        "out the TLS options if it does not use TLS"
    )


def explain_closed_connection(said: str, security: Security) -> str:
    """Explain why a server may have closed the connection. Tries a TLS handshake for up to `PATIENCE_S` if useful."""
    place = peer_address(said)
    if place is None:  # the connection was already open
        return "it stopped"
    if not security.is_tls:
        if speaks_tls(place):
            return "it uses TLS: give its authority (--tls-ca), and your certificate if it asks for one (--tls-cert)"
        return "it stopped, or this is not Triton's gRPC port (8001; 8000 is HTTP)"
    if security.tls_cert is None or security.tls_key is None:
        return "it requires a client certificate (--tls-cert with --tls-key), or it stopped"
    if has_expired(security.tls_cert, security.tls_key):
        return f"the client certificate {security.tls_cert} (--tls-cert) has expired: renew it"
    return (
        f"it does not trust the authority that signed the client certificate {security.tls_cert} (--tls-cert), so use "
        "one signed by an authority that it trusts; or it stopped"
    )


def peer_address(said: str) -> tuple[str, int] | None:
    """Return the address and port in gRPC's message, or None if there are none."""
    found = WHERE.search(said)
    if found is None:
        return None
    ipv4, port4, ipv6, port6 = found.groups()
    return (ipv4, int(port4)) if ipv4 else (ipv6, int(port6))


def speaks_tls(place: tuple[str, int]) -> bool:
    """Whether the server there answers a TLS handshake. Nothing is sent, so any certificate will do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(place, PATIENCE_S) as connection, context.wrap_socket(connection):
            return True
    except OSError:
        return False


def has_expired(certificate: Path, key: Path) -> bool:
    """Whether the client certificate has expired. OpenSSL checks it in an in-memory handshake with itself."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(certificate, key)
    client.load_verify_locations(certificate)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trust it without the authority that signed it
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    try:
        for side in (ours, theirs, ours):  # hello, certificate, verdict
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as exc:
        return "expired" in exc.verify_message
    return False
