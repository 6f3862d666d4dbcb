"""How a connection is protected: TLS, mutual TLS, and the API key."""

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from asl_triton.errors import AslTritonError

with contextlib.suppress(ImportError):  # the Python inside Triton's stub is a build of its own, which may not load it
    import ssl


@dataclass(frozen=True)
class Security:
    """How a connection is protected. `tls_ca` or `tls_cert` turn TLS on; `tls_cert` with `tls_key` is mutual TLS.

    `tls_server_name` is the name that the servers' certificates bear, where it is not the one they are reached by.

    Raises:
        AslTritonError: a file is not there or not what it should be, or the key cannot be sent.
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
                raise AslTritonError(f"there is no file {path} to speak TLS with")
        if self.api_key is not None and not re.fullmatch("[!-~]+", self.api_key):
            raise AslTritonError("the API key (--api-key) must be letters, digits and signs of ASCII, without spaces")
        if self.tls_server_name is not None and not self.is_tls:
            raise AslTritonError("a name for TLS (--tls-server-name) needs TLS: give --tls or --tls-ca too")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # gRPC would only say that no server answers
        try:
            if self.tls_ca is not None:
                context.load_verify_locations(self.tls_ca)
        except OSError as exc:
            raise AslTritonError(f"{self.tls_ca} (--tls-ca) holds no certificate in PEM: {exc}") from exc
        try:
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")  # gRPC takes no encrypted key
        except OSError as exc:
            raise AslTritonError(
                f"{self.tls_cert} (--tls-cert) and {self.tls_key} (--tls-key) are no certificate in PEM and its "
                f"unencrypted key: {exc}"
            ) from exc

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    @property
    def headers(self) -> dict[str, str]:
        """What Triton's `--grpc-restricted-protocol=...:api-key=VALUE` asks to see on each call."""
        return {} if self.api_key is None else {"triton-grpc-protocol-api-key": self.api_key}
