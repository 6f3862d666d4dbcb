"""How often a request is retried."""

import asyncio

import pytest
from tritonclient.utils import InferenceServerException

from asl_triton.transport import retry
from asl_triton.transport.retry import TRIES, TRIES_OF_SEVERAL, RetryPolicy

UNREACHABLE = InferenceServerException("failed to connect to all addresses", "StatusCode.UNAVAILABLE")
STOPPING = InferenceServerException("Server is stopping, scheduler has stopped", "StatusCode.UNAVAILABLE")
FULL = InferenceServerException("Exceeds maximum queue size", "StatusCode.UNAVAILABLE")
INVALID = InferenceServerException("no", "StatusCode.INVALID_ARGUMENT")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: 0.0)


def count_attempts(policy: RetryPolicy, fault: Exception, *, answers_at: int = 10**9, again: bool = True) -> int:
    """Return how many times one request was sent. It is answered at attempt `answers_at`."""
    attempts: list[int] = []

    async def send() -> str:
        attempts.append(1)
        if len(attempts) < answers_at:
            raise fault
        return "an answer"

    try:
        asyncio.run(policy.run(send, again=again))
    except InferenceServerException as exc:
        assert exc is fault and len(attempts) < answers_at
    return len(attempts)


def test_throttle_limits_retries_and_answers_refill_it() -> None:
    policy = RetryPolicy()
    assert [count_attempts(policy, UNREACHABLE) for _ in range(12)] == [TRIES] * 12
    assert [count_attempts(policy, UNREACHABLE) for _ in range(3)] == [2, 1, 1]
    for _ in range(40):
        assert count_attempts(policy, UNREACHABLE, answers_at=1) == 1
    assert count_attempts(policy, UNREACHABLE) > 1
    for _ in range(2000):
        assert count_attempts(policy, UNREACHABLE, answers_at=1) == 1
    assert [count_attempts(policy, UNREACHABLE) for _ in range(13)] == [TRIES] * 12 + [2]


def test_stopping_server_does_not_count_if_there_are_others() -> None:
    policy = RetryPolicy(several=True)
    for _ in range(10):
        assert count_attempts(policy, STOPPING) == TRIES_OF_SEVERAL
    assert count_attempts(policy, UNREACHABLE) == TRIES
    policy.several = False
    assert count_attempts(policy, STOPPING) == TRIES


def test_other_faults_are_not_retried() -> None:
    assert count_attempts(RetryPolicy(), INVALID) == 1


def test_retries_can_be_turned_off() -> None:
    policy = RetryPolicy(several=True)
    assert [count_attempts(policy, fault, again=False) for fault in (UNREACHABLE, STOPPING)] == [1, 1]
    assert policy.resent == 0


@pytest.mark.parametrize(
    ("fault", "abandoned"), [(UNREACHABLE, 3), (STOPPING, 3), (FULL, 0)], ids=["unreachable", "stopping", "full"]
)
def test_attempts_that_the_server_may_still_read_are_counted(fault: Exception, abandoned: int) -> None:
    policy = RetryPolicy()
    assert count_attempts(policy, fault, answers_at=4) == 4
    assert (policy.resent, policy.abandoned) == (3, abandoned)


def test_canceled_attempt_may_still_be_read() -> None:
    policy = RetryPolicy()

    async def cancel_request() -> None:
        sending = asyncio.create_task(policy.run(lambda: asyncio.sleep(60)))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(cancel_request())
    assert policy.abandoned == 1
