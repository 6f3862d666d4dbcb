"""Certificates of two authorities, created for each test session."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from asl_triton.transport.security import Security

PASSWORD = b"secret"


@dataclass(frozen=True)
class Certificates:
    """A folder of certificates and keys in PEM, `NAME.pem` and `NAME.key`.

    `authority` and `other` are certificate authorities. `authority` signed `server` (for this machine), `stranger` (for
    another host), `outdated` (an expired server certificate), `client`, and `late` (an expired client certificate).
    `other` signed `foreign` (a client certificate).
    """

    folder: Path

    def build_security(self, ca: str | None = None, own: str | None = None, name: str | None = None) -> Security:
        """A client's settings: the authority it trusts, its own certificate, and the server name it expects."""
        authority = self.folder / f"{ca}.pem" if ca else None
        cert, key = (self.folder / f"{own}.pem", self.folder / f"{own}.key") if own else (None, None)
        return Security(tls_ca=authority, tls_cert=cert, tls_key=key, tls_server_name=name)

    def read(self, name: str) -> bytes:
        """Read one of the files."""
        return (self.folder / name).read_bytes()


def make_certificates(folder: Path) -> Certificates:
    """Write all certificates and keys to an empty folder."""
    authority, other = trustme.CA(), trustme.CA()
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    leaves = {
        "server": authority.issue_cert("127.0.0.1", "localhost", "triton.example"),
        "stranger": authority.issue_cert("elsewhere.example"),
        "outdated": authority.issue_cert("127.0.0.1", not_after=yesterday),
        "client": authority.issue_cert("client.example"),
        "late": authority.issue_cert("client.example", not_after=yesterday),
        "foreign": other.issue_cert("client.example"),
    }
    for name, leaf in leaves.items():
        (folder / f"{name}.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    key = serialization.load_pem_private_key(leaves["client"].private_key_pem.bytes(), None)
    locked = serialization.BestAvailableEncryption(PASSWORD)
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    (folder / "locked.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, traditional, locked))
    (folder / "text.pem").write_text("no certificate")
    return Certificates(folder)
