"""Processes are identified by PID and start time."""

import os
import subprocess
import sys

import pytest

from asl_triton.processes import has_ended, read_start_ticks, read_start_time

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_running_process_has_not_ended() -> None:
    for pid in (os.getpid(), 1):
        ticks = read_start_ticks(pid)
        assert ticks is not None and not has_ended(pid, ticks)
        assert str(read_start_time(pid)).endswith(f" {ticks}")


def test_reused_pid_means_the_process_has_ended() -> None:
    assert has_ended(os.getpid(), 1)


def test_zombie_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ticks = read_start_ticks(process.pid)
        assert ticks is not None and not has_ended(process.pid, ticks)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert read_start_ticks(process.pid) is None
        assert read_start_time(process.pid) is None
        assert has_ended(process.pid, ticks)


def test_missing_process_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert has_ended(process.pid, 1)
    assert read_start_time(process.pid) is None
