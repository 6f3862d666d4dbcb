"""From the options of a command to the server it asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asl_triton.commands.extras import extra
from asl_triton.recognizer import AsyncRecognizer
from asl_triton.transport import GrpcTransport, Security


@dataclass(frozen=True)
class Connection:
    """Which server, and how to speak to it; `local` starts one on `repository` instead."""

    server: str
    security: Security
    timeout_s: float
    local: bool = False
    repository: Path = Path("model_repository")

    @contextmanager
    def address(self) -> Iterator[str]:
        """The server's address, for the length of the block."""
        if not self.local:
            yield self.server
            return
        with extra("serve"):
            from asl_triton_deploy.local import LocalTriton
        with LocalTriton(self.repository) as triton:
            yield triton.address

    def transport(self, address: str, in_flight: int) -> GrpcTransport:
        """A connection to that address."""
        return GrpcTransport(address, security=self.security, timeout_s=self.timeout_s, in_flight=in_flight)

    def recognizer(self, address: str, model: str | None, in_flight: int, priority: int = 0) -> AsyncRecognizer:
        """A recognizer that asks there."""
        transport = self.transport(address, in_flight)
        return AsyncRecognizer(model=model, in_flight=in_flight, priority=priority, transport=transport)
