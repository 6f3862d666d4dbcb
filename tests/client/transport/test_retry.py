"""How often a request is sent again."""

import asyncio

import pytest
from tritonclient.utils import InferenceServerException

from asl_triton.transport import retry
from asl_triton.transport.retry import TRIES, TRIES_OF_SEVERAL, RetryPolicy

AWAY = InferenceServerException("failed to connect to all addresses", "StatusCode.UNAVAILABLE")
LEAVING = InferenceServerException("Server is stopping, scheduler has stopped", "StatusCode.UNAVAILABLE")
FULL = InferenceServerException("Exceeds maximum queue size", "StatusCode.UNAVAILABLE")
INVALID = InferenceServerException("no", "StatusCode.INVALID_ARGUMENT")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: 0.0)


def tries(policy: RetryPolicy, fault: Exception, *, answers_at: int = 10**9, again: bool = True) -> int:
    """How often one request was tried; its answer comes at that try."""
    tried: list[int] = []

    async def send() -> str:
        tried.append(1)
        if len(tried) < answers_at:
            raise fault
        return "an answer"

    try:
        asyncio.run(policy.run(send, again=again))
    except InferenceServerException as exc:
        assert exc is fault and len(tried) < answers_at
    return len(tried)


def test_throttle_ends_what_is_sent_again_and_answers_fill_it() -> None:
    policy = RetryPolicy()
    assert [tries(policy, AWAY) for _ in range(12)] == [TRIES] * 12
    assert [tries(policy, AWAY) for _ in range(3)] == [2, 1, 1]
    for _ in range(40):
        assert tries(policy, AWAY, answers_at=1) == 1
    assert tries(policy, AWAY) > 1
    for _ in range(2000):
        assert tries(policy, AWAY, answers_at=1) == 1
    assert [tries(policy, AWAY) for _ in range(13)] == [TRIES] * 12 + [2]


def test_server_that_is_leaving_costs_nothing_where_there_are_others() -> None:
    policy = RetryPolicy(several=True)
    for _ in range(10):
        assert tries(policy, LEAVING) == TRIES_OF_SEVERAL
    assert tries(policy, AWAY) == TRIES
    policy.several = False
    assert tries(policy, LEAVING) == TRIES


def test_other_faults_are_not_tried_again() -> None:
    assert tries(RetryPolicy(), INVALID) == 1


def test_nothing_is_tried_again_where_that_is_not_wanted() -> None:
    policy = RetryPolicy(several=True)
    assert [tries(policy, fault, again=False) for fault in (AWAY, LEAVING)] == [1, 1]
    assert policy.resent == 0


@pytest.mark.parametrize(("fault", "abandoned"), [(AWAY, 3), (LEAVING, 3), (FULL, 0)], ids=["away", "leaving", "full"])
def test_tries_that_the_server_may_still_read_are_counted(fault: Exception, abandoned: int) -> None:
    policy = RetryPolicy()
    assert tries(policy, fault, answers_at=4) == 4
    assert (policy.resent, policy.abandoned) == (3, abandoned)


def test_cancelled_try_may_still_be_read() -> None:
    policy = RetryPolicy()

    async def go() -> None:
        sending = asyncio.create_task(policy.run(lambda: asyncio.sleep(60)))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(go())
    assert policy.abandoned == 1
