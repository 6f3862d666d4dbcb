"""From the options of a command to the server it asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asl_triton.cli.optional_imports import require_extra
from asl_triton.decoding.factory import DEFAULT_DECODE_TIMEOUT_S, DecodeIn
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.upload import Send
from asl_triton.transport.base import Transport
from asl_triton.transport.factory import make_transport
from asl_triton.transport.security import Security
from asl_triton.transport.shm import Sharing


@dataclass(frozen=True)
class Connection:
    """Which server, and how to speak to it; `local` starts one on `repository` instead.

    `send` is as in `AsyncRecognizer`; a local server has `recognize_sign` where that may be asked. `shared_memory` is
    as in `make_transport`.
    """

    server: str
    security: Security
    timeout_s: float
    local: bool = False
    repository: Path = Path("model_repository")
    send: Send = "frames"
    shared_memory: Sharing = "auto"

    @contextmanager
    def address(self) -> Iterator[str]:
        """The server's address, for the length of the block."""
        if not self.local:
            yield self.server
            return
        with require_extra("serve"):
            from asl_triton_deploy.local import LocalTriton
        with LocalTriton(self.repository, recognize_sign=self.send != "frames") as triton:
            yield triton.address

    def transport(self, address: str, in_flight: int, resend: bool = True) -> Transport:
        """A connection to that address."""
        return make_transport(
            address,
            security=self.security,
            timeout_s=self.timeout_s,
            in_flight=in_flight,
            resend=resend,
            shared_memory=self.shared_memory,
        )

    def recognizer(
        self,
        address: str,
        model: str | None,
        in_flight: int,
        priority: int = 0,
        resend: bool = True,
        *,
        decoding: DecodeIn = "threads",
        decoders: int | None = None,
        decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
    ) -> AsyncRecognizer:
        """A recognizer that asks there, with these arguments."""
        return AsyncRecognizer(
            model=model,
            in_flight=in_flight,
            priority=priority,
            send=self.send,
            decoding=decoding,
            decoders=decoders,
            decode_timeout_s=decode_timeout_s,
            transport=self.transport(address, in_flight, resend),
        )
