"""`asl-triton` as it is typed, in this process: exit code and both outputs."""

import sys
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from asl_triton.cli.app import main


@dataclass(frozen=True)
class Done:
    """How a command ended; `told` is all it printed, on one line."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        return " ".join((self.out + " " + self.err).split())


def asl_triton(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run `asl-triton ARGUMENTS`; no traceback is ever allowed."""
    capsys.readouterr()
    with patch.object(sys, "argv", ["asl-triton", *map(str, arguments)]), pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    code = ended.value.code
    return Done(code if isinstance(code, int) else int(code is not None), out, err)
