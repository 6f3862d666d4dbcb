"""When a request is sent again. gRPC's own retries stop at 256 KiB, and a clip is larger."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from asl_triton.transport.error_mapping import is_retryable, is_stopping

T = TypeVar("T")

TRIES = 4
# Of two servers, one that is stopping refuses every second try, for as long as it answers what it has.
TRIES_OF_SEVERAL = 24
MIN_PAUSE_S, MAX_PAUSE_S = 0.1, 2.0
growing = tenacity.wait_random_exponential(multiplier=0.2, min=MIN_PAUSE_S, max=MAX_PAUSE_S)
short = tenacity.wait_random(0, MIN_PAUSE_S)


class RetryThrottle:
    """How much may be sent again, of all requests together: gRPC's retry throttling (its proposal A6).

    There are 100 tokens. A try that is lost costs one, an answer gives a tenth of one back, and with half of them gone
    nothing is sent again: a server that is in trouble is not asked four times as much.
    """

    MOST, AN_ANSWER = 100.0, 0.1

    def __init__(self) -> None:
        self._tokens = self.MOST

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is sent again for now."""
        return self._tokens <= self.MOST / 2

    def record_failure(self) -> None:
        """Count a try that was lost."""
        self._tokens = max(self._tokens - 1, 0.0)

    def record_success(self) -> None:
        """Count an answer."""
        self._tokens = min(self._tokens + self.AN_ANSWER, self.MOST)


async def retry(
    ask: Callable[[], Awaitable[T]], several: bool, budget: RetryThrottle, on_resend: Callable[[], None]
) -> T:
    """What `ask` gives, at its first or a later try; what its last try raised otherwise.

    It is tried again, four times in all and within the budget, where a server was away or its queue full. Where there
    are `several`, one that refuses because it is stopping does not count: the next try may meet another one.
    """
    lost = 0

    def is_enough(state: tenacity.RetryCallState) -> bool:
        nonlocal lost
        if not (several and is_stopping(get_exception(state))):
            lost += 1
            budget.record_failure()
        return lost >= TRIES or budget.is_exhausted or state.attempt_number >= TRIES_OF_SEVERAL

    def pause_s(state: tenacity.RetryCallState) -> float:
        return short(state) if several and is_stopping(get_exception(state)) else growing(state)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_retryable),
        wait=pause_s,
        stop=is_enough,
        before_sleep=lambda _state: on_resend(),
        reraise=True,
    )
    answer: T = await retrying(ask)
    budget.record_success()
    return answer


def get_exception(state: tenacity.RetryCallState) -> BaseException:
    """What the last try raised."""
    assert state.outcome is not None
    fault = state.outcome.exception()
    assert fault is not None
    return fault
