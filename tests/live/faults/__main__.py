"""The table of faults: `python -m tests.live.faults` runs the tests, and prints their figures as Markdown."""

import sys
from pathlib import Path

import pytest

COLUMNS = ("fault", "what was done", "result")


class Rows:
    """A plugin of pytest that keeps what tests record as a `fault`, and which of them failed."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a test's row."""
        if report.failed:
            self.rows.append((report.nodeid.rpartition("::")[2], "", f"FAILED ({report.when})"))
        elif report.when == "call":
            self.rows += [value for name, value in report.user_properties if name == "fault"]


def main() -> int:
    """Run the tests and print the table; the exit code is pytest's."""
    rows = Rows()
    code = pytest.main(["-q", str(Path(__file__).parent), *sys.argv[1:]], plugins=[rows])
    for row in (COLUMNS, ("---",) * len(COLUMNS), *rows.rows):
        print(f"| {' | '.join(row)} |")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
