"""From the options of a command to the server it asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asl_triton.commands.extras import extra
from asl_triton.recognizer import AsyncRecognizer
from asl_triton.sending import Send
from asl_triton.transport import GrpcTransport, Security


@dataclass(frozen=True)
class Connection:
    """Which server, and how to speak to it; `local` starts one on `repository` instead.

    `send` is as in `AsyncRecognizer`; a local server has `recognize_sign` where that may be asked.
    """

    server: str
    security: Security
    timeout_s: float
    local: bool = False
    repository: Path = Path("model_repository")
    send: Send = "frames"

    @contextmanager
    def address(self) -> Iterator[str]:
        """The server's address, for the length of the block."""
        if not self.local:
            yield self.server
            return
        with extra("serve"):
            from asl_triton_deploy.local import LocalTriton
        with LocalTriton(self.repository, recognize_sign=self.send != "frames") as triton:
            yield triton.address

    def transport(self, address: str, in_flight: int, resend: bool = True) -> GrpcTransport:
        """A connection to that address."""
        return GrpcTransport(
            address, security=self.security, timeout_s=self.timeout_s, in_flight=in_flight, resend=resend
        )

    def recognizer(
        self, address: str, model: str | None, in_flight: int, priority: int = 0, resend: bool = True
    ) -> AsyncRecognizer:
        """A recognizer that asks there."""
        transport = self.transport(address, in_flight, resend)
        return AsyncRecognizer(model=model, in_flight=in_flight, priority=priority, send=self.send, transport=transport)
