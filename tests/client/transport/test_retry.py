"""How often a request is sent again."""

import asyncio

import pytest
from tritonclient.utils import InferenceServerException

from asl_triton.transport import retry as retries
from asl_triton.transport.retry import TRIES, TRIES_OF_SEVERAL, RetryThrottle, retry

AWAY = InferenceServerException("failed to connect to all addresses", "StatusCode.UNAVAILABLE")
LEAVING = InferenceServerException("Server is stopping, scheduler has stopped", "StatusCode.UNAVAILABLE")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("growing", "short"):
        monkeypatch.setattr(retries, name, lambda state: 0.0)


def tries(budget: RetryThrottle, fault: Exception, *, several: bool = False, answers_at: int = 10**9) -> int:
    """How often one request was tried; its answer comes at that try."""
    tried: list[int] = []

    async def ask() -> str:
        tried.append(1)
        if len(tried) < answers_at:
            raise fault
        return "an answer"

    try:
        asyncio.run(retry(ask, several, budget, lambda: None))
    except InferenceServerException as exc:
        assert exc is fault and len(tried) < answers_at
    return len(tried)


def test_budget_ends_what_is_sent_again_and_answers_fill_it() -> None:
    budget = RetryThrottle()
    assert [tries(budget, AWAY) for _ in range(12)] == [TRIES] * 12
    assert [tries(budget, AWAY) for _ in range(3)] == [2, 1, 1]
    for _ in range(40):
        assert tries(budget, AWAY, answers_at=1) == 1
    assert tries(budget, AWAY) > 1
    for _ in range(2000):
        budget.record_success()
    assert [tries(budget, AWAY) for _ in range(13)] == [TRIES] * 12 + [2]


def test_server_that_is_leaving_costs_no_budget_where_there_are_others() -> None:
    budget = RetryThrottle()
    for _ in range(10):
        assert tries(budget, LEAVING, several=True) == TRIES_OF_SEVERAL
    assert tries(budget, AWAY) == TRIES
    assert tries(budget, LEAVING) == TRIES


def test_other_faults_are_not_tried_again() -> None:
    assert tries(RetryThrottle(), InferenceServerException("no", "StatusCode.INVALID_ARGUMENT")) == 1
