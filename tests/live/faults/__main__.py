"""Run the fault tests with `python -m tests.live.faults`, and print their results as a Markdown table."""

import sys
from pathlib import Path

import pytest

COLUMNS = ("fault", "what was done", "result")


class Rows:
    """A pytest plugin that collects the `fault` property of each test, and the tests that failed."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the row of a test."""
        if report.failed:
            self.rows.append((report.nodeid.rpartition("::")[2], "", f"FAILED ({report.when})"))
        elif report.when == "call":
            self.rows += [value for name, value in report.user_properties if name == "fault"]


def main() -> int:
    """Run the tests, print the table, and return pytest's exit code."""
    rows = Rows()
    code = pytest.main(["-q", str(Path(__file__).parent), *sys.argv[1:]], plugins=[rows])
    for row in (COLUMNS, ("---",) * len(COLUMNS), *rows.rows):
        print(f"| {' | '.join(row)} |")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
