"""Settings that protect a connection: TLS, mutual TLS, and the API key."""

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from asl_triton.errors import AslTritonError

with contextlib.suppress(ImportError):  # Triton's stub contains its own build of Python, which may be unable to load it
    import ssl


@dataclass(frozen=True)
class Security:
    """Settings that protect a connection. `tls_ca` or `tls_cert` turn on TLS; `tls_cert` with `tls_key` is mutual TLS.

    `tls_server_name` is the name in the servers' certificates, if it differs from the name in their address.

    Raises:
        AslTritonError: a file is missing or is not what it should be, or the API key has invalid characters.
    """

    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    tls_server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise AslTritonError("mutual TLS needs both the certificate (--tls-cert) and its key (--tls-key)")
        for path in (self.tls_ca, self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise AslTritonError(f"TLS needs the file {path}, which does not exist")
        if self.api_key is not None and not re.fullmatch("[!-~]+", self.api_key):
            raise AslTritonError("the API key (--api-key) must be printable ASCII characters without spaces")
        if self.tls_server_name is not None and not self.is_tls:
            raise AslTritonError("--tls-server-name needs TLS: give --tls or --tls-ca too")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checked here, as gRPC would only say that no server answers
        try:
            if self.tls_ca is not None:
                context.load_verify_locations(self.tls_ca)
        except OSError as exc:
            raise AslTritonError(f"{self.tls_ca} (--tls-ca) does not contain a PEM certificate: {exc}") from exc
        try:
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")  # gRPC does not accept encrypted keys
        except OSError as exc:
            raise AslTritonError(
                f"{self.tls_cert} (--tls-cert) and {self.tls_key} (--tls-key) are not a PEM certificate and its "
                f"unencrypted key: {exc}"
            ) from exc

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that Triton's `--grpc-restricted-protocol=...:api-key=VALUE` requires on each call."""
        return {} if self.api_key is None else {"triton-grpc-protocol-api-key": self.api_key}
