"""`asl-triton ui` on the command line. Each error is one sentence."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.command_line import asl_triton

Capture = pytest.CaptureFixture[str]


def test_busy_port_is_reported(capsys: Capture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = asl_triton(capsys, "ui", "--port", port, "--server", "127.0.0.1:9")
    assert done.code == 1
    assert f"port {port} on 127.0.0.1 is in use, perhaps by another page: stop it, or choose another" in done.output


def test_bad_options_are_reported(capsys: Capture, tmp_path: Path) -> None:
    for options, says in (
        (["--host", "192.0.2.1"], "not an address of this machine"),
        (["--host", "no.such.host.invalid"], "not an address of this machine"),
        (["--auth", "secret"], "is not of the form user:password"),
        (["--auth-file", tmp_path / "nowhere"], "cannot read"),
        (["--server", "http://host:8001"], "is not a server address"),
        (["--dictionary", tmp_path / "nowhere"], "cannot read the dictionary"),
        (["--local", "--repository", tmp_path / "nowhere"], "nowhere"),
    ):
        done = asl_triton(capsys, "ui", "--port", 0, *options)
        assert (done.code, says in done.output) == (1, True), done.output
    assert asl_triton(capsys, "ui", "--port", 70000).code == 2
    assert asl_triton(capsys, "ui", "--max-minutes", 0).code == 2
    for option, says in (("--visitors-teach", "needs --dictionary"), ("--with-vocabulary", "requires --dictionary")):
        done = asl_triton(capsys, "ui", option)
        assert (done.code, says in done.output) == (2, True), done.output


def test_page_loads_neither_torch_nor_our_other_packages() -> None:
    code = (
        "import sys, asl_triton_ui.app, asl_triton_ui.launching\n"
        "names = ('torch', 'asl_triton_export', 'asl_triton_deploy')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


RECORD_HOSTS = """
import atexit, json, sys

hosts = []

def look(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        hosts.append(arguments[0])
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        hosts.append(arguments[1][0])

sys.addaudithook(look)
atexit.register(lambda: open(sys.argv.pop(), "w").write(json.dumps(hosts)))
from asl_triton.cli.app import main
path = sys.argv.pop()
sys.argv[0] = "asl-triton"
try:
    main()
finally:
    sys.argv.append(path)
"""


def test_page_contacts_no_other_host_and_leaves_nothing_behind(tmp_path: Path) -> None:
    record, temporary = tmp_path / "hosts.json", tmp_path / "temporary"
    temporary.mkdir()
    command = [
        sys.executable,
        "-c",
        RECORD_HOSTS,
        "ui",
        "--port",
        "0",
        "--server",
        "127.0.0.1:9",
        "--json",
        str(record),
    ]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=temporary) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with urllib.request.urlopen(url, timeout=60) as answer:
            page = answer.read().decode()
            policy = answer.headers["content-security-policy"]
        assert len([path for path in temporary.iterdir() if path.name.startswith("asl-triton-ui-")]) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert "asl-triton" in page and "default-src 'self'" in policy
    hosts = {host.decode() if isinstance(host, bytes) else host for host in json.loads(record.read_text())}
    assert "127.0.0.1" in hosts  # otherwise nothing was recorded
    assert hosts <= {"127.0.0.1", "localhost", "0.0.0.0", "::1", None}
    assert list(temporary.iterdir()) == []
