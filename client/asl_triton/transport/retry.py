"""When a request is sent again."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asl_triton.transport.error_mapping import is_rejected, is_retryable, is_stopping

T = TypeVar("T")

TRIES = 4
# Of two servers, one that is stopping refuses every second try until it has answered what it had.
TRIES_OF_SEVERAL = 24
MIN_PAUSE_S, MAX_PAUSE_S = 0.1, 2.0
MOST_TOKENS, TOKENS_PER_ANSWER = 100.0, 0.1


class RetryPolicy:
    """Sends a request again when the server was away or stopping, or its queue full: four tries in all.

    The pauses are random and grow. All requests together are throttled as in gRPC (proposal A6): of 100 tokens a lost
    try costs one, an answer returns a tenth, and with half of them gone nothing is sent again, so that a server in
    trouble is not asked four times as often. With `several` servers, one that is stopping costs nothing: the next try
    soon meets another.

    gRPC's own `retryPolicy`, with `grpc.per_rpc_retry_buffer_size` raised, does resend a 10 MB request, but it knows
    only the status and stops at five tries: it sent a refused API key four times, gave up half of the requests beside
    a server whose model was unloaded (NOT_FOUND), and a fifth beside one that was stopping. It also hides its tries,
    which shared memory and `connection_epoch` must know about.

    `resent` counts what was sent again; `abandoned` the tries that a server may still be reading, since it neither
    answered nor refused them.
    """

    def __init__(self, several: bool = False) -> None:
        self.several = several
        self.resent = 0
        self.abandoned = 0
        self._tokens = MOST_TOKENS

    async def run(self, send: Callable[[], Awaitable[T]], *, again: bool = True) -> T:
        """Return what `send` answers at its first or, with `again`, a later try.

        Raises:
            InferenceServerException: the last try failed.
        """
        tries = lost = 0
        while True:
            tries += 1
            try:
                answer = await send()
            except BaseException as exc:
                self.abandoned += not is_rejected(exc)
                if not (again and is_retryable(exc)):
                    raise
                is_elsewhere = self.several and is_stopping(exc)
                if not is_elsewhere:
                    lost += 1
                    self._tokens = max(self._tokens - 1, 0.0)
                if lost >= TRIES or tries >= TRIES_OF_SEVERAL or self._tokens <= MOST_TOKENS / 2:
                    raise
            else:
                self._tokens = min(self._tokens + TOKENS_PER_ANSWER, MOST_TOKENS)
                return answer
            self.resent += 1
            longest_s = min(MIN_PAUSE_S * 2**tries, MAX_PAUSE_S)
            await asyncio.sleep(
                random.uniform(0, MIN_PAUSE_S) if is_elsewhere else random.uniform(MIN_PAUSE_S, longest_s)
            )
