"""Running `asl-triton` in this process: its exit code and both outputs."""

import sys
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from asl_triton.cli.app import main


@dataclass(frozen=True)
class CommandResult:
    """How a command ended. `output` is everything that it printed, on one line."""

    code: int
    out: str
    err: str

    @property
    def output(self) -> str:
        return " ".join((self.out + " " + self.err).split())


def asl_triton(capsys: pytest.CaptureFixture[str], *arguments: object) -> CommandResult:
    """Run `asl-triton ARGUMENTS`. Fails if it prints a traceback."""
    capsys.readouterr()
    with patch.object(sys, "argv", ["asl-triton", *map(str, arguments)]), pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    code = ended.value.code
    return CommandResult(code if isinstance(code, int) else int(code is not None), out, err)
