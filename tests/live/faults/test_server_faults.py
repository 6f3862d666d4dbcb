"""What happens to `asl-triton batch` when servers and networks fail: a real Triton, and real faults.

`python -m tests.live.faults` prints the figures as a table.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.ports import claim_ports
from tests.live.faults.archive import ALL_FORMATS, CLIPS, FEW, Answers, answers, doubled, some_of, whole
from tests.live.faults.bad_network import BadNetwork
from tests.live.faults.batch_run import BatchRun, figure
from tests.live.faults.conftest import Row


def free_port() -> int:
    return claim_ports("127.0.0.1", {"gRPC": None})["gRPC"]


def test_server_killed_and_started_again(
    repository: Path, archive: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    port = free_port()
    with (
        LocalTriton(repository, grpc_port=port) as triton,
        BatchRun(archive, tmp_path / "out", triton.address, *ALL_FORMATS) as run,
    ):
        run.until_known(60)
        os.kill(triton.pid, signal.SIGKILL)
        run.until_told("is down: waiting up to 300 s for it (--wait)")
        triton.stop()
        with LocalTriton(repository, grpc_port=port):
            code, told = run.end()
    assert code == 0, told
    back_after_s = figure(told, r"is back after ([\d]+) s")
    whole(tmp_path / "out", undisturbed)
    assert doubled(run.known()) == 0
    row(
        "Triton killed with SIGKILL and restarted",
        f"after 60 of {CLIPS} clips; it was back after {back_after_s} s",
        f"exit 0: {CLIPS} results, 0 failed, 0 duplicated; said that it was waiting, and that the server was back",
    )


def test_server_that_stands_still(
    server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    with BatchRun(few, tmp_path / "out", server.address, "--timeout", 2) as run:
        run.until_known(30)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            run.until_told("is down: waiting up to")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        code, told = run.end()
    assert code == 0, told
    assert "is back after" in told
    whole(tmp_path / "out", undisturbed, FEW)
    row(
        "frozen server",
        "Triton stopped (SIGSTOP) after 30 clips for longer than --timeout, then continued",
        f"exit 0: {FEW} results, 0 failed, {doubled(run.known())} duplicated; said that it was waiting",
    )


def test_answer_that_comes_after_its_deadline(
    server: LocalTriton, archive: Path, white: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    folder = some_of(archive, tmp_path, 20)
    os.link(white, folder / "z-white.mp4")
    with BatchRun(folder, tmp_path / "out", server.address, "--timeout", 2, model="late") as run:
        code, told = run.end()
    assert code == 3, told
    assert "failed z-white.mp4" in told and "did not answer within 2 s" in told and "Raise --timeout" in told
    whole(tmp_path / "out", undisturbed, 20)
    with BatchRun(folder, tmp_path / "out", server.address, "--timeout", 20, model="late") as run:
        again_code, again = run.end()
    assert again_code == 0 and "21 recognized, 20 of them in an earlier run" in again, again
    row(
        "answer after its deadline",
        "21 clips, one of which takes the model 4 s, --timeout 2; then --timeout 20",
        "exit 3: 20 results, only that clip failed; then exit 0: 21 results, 1 of them new",
    )


def test_queue_that_is_full(server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row) -> None:
    with BatchRun(few, tmp_path / "out", server.address, "--in-flight", 32, "--wait", 0, model="narrow") as run:
        code, told = run.end()
    rejected = figure(told, r"([\d,]+) rejected: the server was too busy")
    assert code == 3 and rejected > 0, told
    assert len(answers(tmp_path / "out")) + rejected == FEW
    with BatchRun(few, tmp_path / "out", server.address, model="narrow") as run:
        again_code, again = run.end()
    assert again_code == 0, again
    whole(tmp_path / "out", undisturbed, FEW)
    row(
        "full queue",
        "room for two waiting requests, 32 clips in flight, --wait 0; then as usual",
        f"exit 3: {FEW - rejected} results, {rejected} rejected; then exit 0: {FEW} results, 0 failed",
    )


def test_network_that_is_cut_slow_and_black(
    server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    moments = random.Random(8)
    with (
        BadNetwork(server.address, delay_s=0.002) as network,
        BatchRun(few, tmp_path / "out", network.address, "--timeout", 2) as run,
    ):
        run.until_known(20)
        while len(run.known()) < 50 and run.process.poll() is None:
            time.sleep(moments.uniform(0.1, 0.8))
            network.cut()
        network.black_hole = True
        run.until_told("is down: waiting up to")
        network.black_hole = False
        code, told = run.end()
    assert code == 0, told
    assert network.num_cut > 0
    whole(tmp_path / "out", undisturbed, FEW)
    assert doubled(run.known()) == 0
    row(
        "network slow, then broken, then silent",
        f"2 ms per 64 KiB, {network.num_cut} connections reset at random, then nothing let through for "
        "longer than --timeout",
        f"exit 0: {FEW} results, 0 failed, 0 duplicated",
    )


def test_server_that_is_away_at_the_start(archive: Path, tmp_path: Path, row: Row) -> None:
    with BatchRun(archive, tmp_path / "out", f"127.0.0.1:{free_port()}") as run:
        code, told = run.end()
    assert code == 1
    assert "Error: no server answers at 127.0.0.1:" in told and "asl-triton serve" in told
    assert os.listdir(tmp_path / "out") == []
    row("no server at the start", "nothing listens at --server", "exit 1 at once, with an error message")


@pytest.mark.parametrize("how", ["after a restart", "behind a load balancer"])
def test_server_that_comes_back_as_another(
    server: LocalTriton,
    other_server: LocalTriton,
    few: Path,
    undisturbed: Answers,
    tmp_path: Path,
    row: Row,
    how: str,
) -> None:
    with (
        BadNetwork(server.address) as network,
        BatchRun(few, tmp_path / "out", network.address) as run,
    ):
        run.until_known(30)
        if how == "after a restart":
            network.target = "127.0.0.1:1"
            network.cut()
            run.until_told("is down: waiting up to")
        network.target = other_server.address
        network.cut()
        code, told = run.end()
    assert code == 3, told
    assert "came back with a different quick (other weights, precision or labels)" in told
    found = answers(tmp_path / "out")
    assert 30 <= len(found) < FEW
    for name, ranked in found.items():
        assert [gloss for gloss, _ in ranked] == [gloss for gloss, _ in undisturbed[name]], "of the other checkpoint"
    row(
        f"server with another checkpoint, {how}",
        "after 30 of 100 clips",
        f"exit 3 with an error message: {len(found)} results, all from the first checkpoint",
    )
