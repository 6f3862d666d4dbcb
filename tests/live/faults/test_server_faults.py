"""How `asl-triton batch` survives failing servers and networks, with a real Triton.

`python -m tests.live.faults` prints the results as a table.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.ports import claim_ports
from tests.live.faults.archive import (
    ALL_FORMATS,
    CLIPS,
    FEW,
    Answers,
    check_results,
    count_duplicates,
    link_clips,
    read_answers,
)
from tests.live.faults.bad_network import BadNetwork
from tests.live.faults.batch_run import BatchRun, extract_number
from tests.live.faults.conftest import Row


def claim_port() -> int:
    return claim_ports("127.0.0.1", {"gRPC": None})["gRPC"]


def test_server_killed_and_restarted_loses_nothing(
    repository: Path, archive: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    port = claim_port()
    with (
        LocalTriton(repository, grpc_port=port) as triton,
        BatchRun(archive, tmp_path / "out", triton.address, *ALL_FORMATS) as run,
    ):
        run.wait_for_results(60)
        os.kill(triton.pid, signal.SIGKILL)
        run.wait_for_output("is down: waiting up to 300 s for it (--wait)")
        triton.stop()
        with LocalTriton(repository, grpc_port=port):
            code, printed = run.wait()
    assert code == 0, printed
    back_after_s = extract_number(printed, r"is back after ([\d]+) s")
    check_results(tmp_path / "out", undisturbed)
    assert count_duplicates(run.read_journal()) == 0
    row(
        "Triton killed with SIGKILL and restarted",
        f"after 60 of {CLIPS} clips; it was back after {back_after_s} s",
        f"exit 0: {CLIPS} results, 0 failed, 0 duplicated; said that it was waiting, and that the server was back",
    )


def test_frozen_server_is_waited_for(
    server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    with BatchRun(few, tmp_path / "out", server.address, "--timeout", 2) as run:
        run.wait_for_results(30)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            run.wait_for_output("is down: waiting up to")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        code, printed = run.wait()
    assert code == 0, printed
    assert "is back after" in printed
    check_results(tmp_path / "out", undisturbed, FEW)
    row(
        "frozen server",
        "Triton stopped (SIGSTOP) after 30 clips for longer than --timeout, then continued",
        f"exit 0: {FEW} results, 0 failed, {count_duplicates(run.read_journal())} duplicated; said that it was waiting",
    )


def test_answer_after_its_deadline_fails_only_that_clip(
    server: LocalTriton, archive: Path, white: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    folder = link_clips(archive, tmp_path, 20)
    os.link(white, folder / "z-white.mp4")
    with BatchRun(folder, tmp_path / "out", server.address, "--timeout", 2, model="late") as run:
        code, printed = run.wait()
    assert code == 3, printed
    assert "failed z-white.mp4" in printed and "did not answer within 2 s" in printed and "Raise --timeout" in printed
    check_results(tmp_path / "out", undisturbed, 20)
    with BatchRun(folder, tmp_path / "out", server.address, "--timeout", 20, model="late") as run:
        rerun_code, rerun_printed = run.wait()
    assert rerun_code == 0 and "21 recognized, 20 of them in an earlier run" in rerun_printed, rerun_printed
    row(
        "answer after its deadline",
        "21 clips, one of which takes the model 4 s, --timeout 2; then --timeout 20",
        "exit 3: 20 results, only that clip failed; then exit 0: 21 results, 1 of them new",
    )


def test_full_queue_rejects_clips_until_the_next_run(
    server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    with BatchRun(few, tmp_path / "out", server.address, "--in-flight", 32, "--wait", 0, model="narrow") as run:
        code, printed = run.wait()
    rejected = extract_number(printed, r"([\d,]+) rejected: the server was too busy")
    assert code == 3 and rejected > 0, printed
    assert len(read_answers(tmp_path / "out")) + rejected == FEW
    with BatchRun(few, tmp_path / "out", server.address, model="narrow") as run:
        rerun_code, rerun_printed = run.wait()
    assert rerun_code == 0, rerun_printed
    check_results(tmp_path / "out", undisturbed, FEW)
    row(
        "full queue",
        "room for two waiting requests, 32 clips in flight, --wait 0; then as usual",
        f"exit 3: {FEW - rejected} results, {rejected} rejected; then exit 0: {FEW} results, 0 failed",
    )


def test_slow_broken_and_silent_network_loses_nothing(
    server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    moments = random.Random(8)
    with (
        BadNetwork(server.address, delay_s=0.002) as network,
        BatchRun(few, tmp_path / "out", network.address, "--timeout", 2) as run,
    ):
        run.wait_for_results(20)
        while len(run.read_journal()) < 50 and run.process.poll() is None:
            time.sleep(moments.uniform(0.1, 0.8))
            network.cut()
        network.black_hole = True
        run.wait_for_output("is down: waiting up to")
        network.black_hole = False
        code, printed = run.wait()
    assert code == 0, printed
    assert network.num_cut > 0
    check_results(tmp_path / "out", undisturbed, FEW)
    assert count_duplicates(run.read_journal()) == 0
    row(
        "network slow, then broken, then silent",
        f"2 ms per 64 KiB, {network.num_cut} connections reset at random, then nothing let through for "
        "longer than --timeout",
        f"exit 0: {FEW} results, 0 failed, 0 duplicated",
    )


def test_no_server_at_the_start_fails_at_once(archive: Path, tmp_path: Path, row: Row) -> None:
    with BatchRun(archive, tmp_path / "out", f"127.0.0.1:{claim_port()}") as run:
        code, printed = run.wait()
    assert code == 1
    assert "Error: no server answers at 127.0.0.1:" in printed and "asl-triton serve" in printed
    assert os.listdir(tmp_path / "out") == []
    row("no server at the start", "nothing listens at --server", "exit 1 at once, with an error message")


@pytest.mark.parametrize("how", ["after a restart", "behind a load balancer"])
def test_server_with_another_checkpoint_stops_the_run(
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
        run.wait_for_results(30)
        if how == "after a restart":
            network.target = "127.0.0.1:1"
            network.cut()
            run.wait_for_output("is down: waiting up to")
        network.target = other_server.address
        network.cut()
        code, printed = run.wait()
    assert code == 3, printed
    assert "came back with a different quick (other weights, precision or labels)" in printed
    found = read_answers(tmp_path / "out")
    assert 30 <= len(found) < FEW
    for name, ranked in found.items():
        assert [gloss for gloss, _ in ranked] == [gloss for gloss, _ in undisturbed[name]], "from the other checkpoint"
    row(
        f"server with another checkpoint, {how}",
        "after 30 of 100 clips",
        f"exit 3 with an error message: {len(found)} results, all from the first checkpoint",
    )
