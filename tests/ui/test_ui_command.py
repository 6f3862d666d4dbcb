"""`asl-triton ui` as it is typed: what is wrong with it is one sentence."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import asl_triton

Capture = pytest.CaptureFixture[str]


def test_port_that_is_taken_is_a_sentence(capsys: Capture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = asl_triton(capsys, "ui", "--port", port, "--server", "127.0.0.1:9")
    assert done.code == 1
    assert f"port {port} on 127.0.0.1 is in use, perhaps by another page: stop that, or give another" in done.told


def test_wrong_options_are_a_sentence(capsys: Capture, tmp_path: Path) -> None:
    for options, says in (
        (["--host", "192.0.2.1"], "not an address of this machine"),
        (["--host", "no.such.host.invalid"], "not an address of this machine"),
        (["--auth", "secret"], "is not user:password"),
        (["--auth-file", tmp_path / "nowhere"], "cannot read"),
        (["--server", "http://host:8001"], "is no server's address"),
        (["--local", "--repository", tmp_path / "nowhere"], "nowhere"),
    ):
        done = asl_triton(capsys, "ui", "--port", 0, *options)
        assert (done.code, says in done.told) == (1, True), done.told
    assert asl_triton(capsys, "ui", "--port", 70000).code == 2
    assert asl_triton(capsys, "ui", "--max-minutes", 0).code == 2


def test_page_loads_neither_torch_nor_our_other_packages() -> None:
    code = (
        "import sys, asl_triton_ui.app, asl_triton_ui.launching\n"
        "names = ('torch', 'asl_triton_export', 'asl_triton_deploy')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
