"""Single calls, each over its own transport."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np

from asl_triton.transport.factory import make_transport
from asl_triton.transport.security import Security

T = TypeVar("T")
FRAMES = {"FRAMES__0": np.zeros((1, 9, 224, 224, 3), np.uint8)}


def asked(address: str, ask: Callable[[Any], Awaitable[T]], security: Security | None = None, **options: Any) -> T:
    """Open a transport, return the result of `ask(transport)`, and close it."""

    async def run() -> T:
        transport = make_transport(address, security=security, **options)
        try:
            return await ask(transport)
        finally:
            await transport.close()

    return asyncio.run(run())


def infer_logits(address: str, security: Security | None = None, **options: Any) -> list[float]:
    """Return the logits of `signs` for nine black frames."""
    outputs = asked(address, lambda t: t.infer("signs", FRAMES, ["LOGITS__0"]), security, **options)
    return [float(logit) for logit in outputs["LOGITS__0"][0]]


def read_version(address: str, security: Security | None = None, **options: Any) -> str:
    """Return the server's version."""
    return asked(address, lambda transport: transport.server_version(), security, **options)
