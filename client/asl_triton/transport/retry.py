"""Decides when to send a request again."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asl_triton.transport.error_mapping import is_rejected, is_retryable, is_stopping

T = TypeVar("T")

TRIES = 4
# If one of two servers is stopping, it refuses every second try until it has answered its remaining requests.
TRIES_OF_SEVERAL = 24
MIN_PAUSE_S, MAX_PAUSE_S = 0.1, 2.0
MOST_TOKENS, TOKENS_PER_ANSWER = 100.0, 0.1


class RetryPolicy:
    """Sends a request again if the server was down or stopping, or its queue was full, up to four tries in total.

    The pauses are random and grow. All requests together are throttled as in gRPC (proposal A6): there are 100 tokens,
    a failed try costs one, and an answer returns a tenth. When half of them are gone, nothing is sent again, so that a
    server in trouble does not get four times the load. With `several` servers, one that is stopping costs no tokens,
    because the next try soon reaches another one.

    gRPC's own `retryPolicy`, with `grpc.per_rpc_retry_buffer_size` raised, can resend a 10 MB request, but it sees only
    the status and stops after five tries. It sent a wrong API key four times. With two servers, it gave up on half of
    the requests while one had unloaded its model (NOT_FOUND), and on a fifth while one was stopping. It also hides its
    tries, which shared memory and `connection_epoch` depend on.

    `resent` counts the requests that were sent again. `abandoned` counts the tries that a server may still be reading,
    because it neither answered nor rejected them.
    """

    def __init__(self, several: bool = False) -> None:
        self.several = several
        self.resent = 0
        self.abandoned = 0
        self._tokens = MOST_TOKENS

    async def run(self, send: Callable[[], Awaitable[T]], *, again: bool = True) -> T:
        """Return the result of `send`, from its first try or, with `again`, from a later one.

        Raises:
            InferenceServerException, AioRpcError: the last try failed.
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
