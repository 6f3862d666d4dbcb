"""Formatting numbers for HTML pages."""

import math

import pytest

from asl_triton.writers.html import format_percent


@pytest.mark.parametrize(("share", "shown"), [
    (1.0, "100.0"), (0.99996, "99.9"), (0.9999, "99.9"), (0.9876, "98.8"), (0.6589, "65.9"), (0.5, "50.0"),
    (0.0004, "0.0"), (0, "0.0"),
])  # fmt: skip
def test_only_exactly_one_is_shown_as_100_percent(share: float, shown: str) -> None:
    assert format_percent(share) == f"{shown}\N{NO-BREAK SPACE}%"
    assert math.isclose(float(shown), share * 100, abs_tol=0.1)
