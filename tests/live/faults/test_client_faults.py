"""How `asl-triton batch` survives signals, full disks and bad videos, with a real Triton.

`python -m tests.live.faults` prints the results as a table.
"""

import os
import pty
import random
import signal
import time
from pathlib import Path

import pytest

from asl_triton_deploy.local import LocalTriton
from tests.client.conftest import Shrink
from tests.live.conftest import write_clip
from tests.live.faults.archive import (
    ALL_FORMATS,
    CLIPS,
    FEW,
    NAMES,
    Answers,
    check_results,
    count_duplicates,
    link_clips,
    read_answers,
    read_json_lines,
)
from tests.live.faults.batch_run import BatchRun, extract_number
from tests.live.faults.conftest import Row


def test_client_killed_at_ten_random_moments(
    server: LocalTriton, archive: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    moments, output, known = random.Random(7), tmp_path / "out", set[str]()
    killed_at = []
    for kill in range(10):
        with BatchRun(archive, output, server.address, *ALL_FORMATS) as run:
            if kill in (2, 6):  # before or after the first request
                time.sleep(moments.uniform(0, 1))
            elif kill < 9:
                run.wait_for_results(len(known) + moments.randrange(1, 28))
                time.sleep(moments.uniform(0, 0.05))
            else:  # while it writes the results
                run.wait_for_results(CLIPS)
            journaled = run.kill()
        assert known <= set(journaled), "a known result is lost"
        assert len(journaled) == len(set(journaled)), "a clip is duplicated"
        known = set(journaled)
        killed_at.append(len(known))
    assert killed_at[0] < CLIPS and len(set(killed_at)) > 3
    with BatchRun(archive, output, server.address, *ALL_FORMATS) as run:
        code, printed = run.wait()
    assert code == 0, printed
    assert f"{len(known)} of them in an earlier run" in printed
    check_results(output, undisturbed)
    assert count_duplicates(run.read_journal()) == 0
    row(
        "client killed with SIGKILL ten times",
        f"at {', '.join(map(str, killed_at))} of {CLIPS} results; rerun each time",
        f"exit 0 in the end: {CLIPS} results as undisturbed, 0 lost, 0 duplicated, no torn line, no process left",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_finishes_clips_in_flight(
    server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row, number: signal.Signals
) -> None:
    with BatchRun(few, tmp_path / "out", server.address, *ALL_FORMATS) as run:
        run.wait_for_results(30)
        run.send(number)
        code, printed = run.wait()
    done = read_answers(tmp_path / "out")
    assert code == 3, printed
    assert f"{number.name}: finishing the " in printed
    left = extract_number(printed, r"([\d,]+) left: run the same command again")
    assert left > 0 and len(done) + left == FEW and sorted(run.read_journal()) == list(done)
    with BatchRun(few, tmp_path / "out", server.address, *ALL_FORMATS) as run:
        rerun_code, rerun_printed = run.wait()
    assert rerun_code == 0 and f"{len(done)} of them in an earlier run" in rerun_printed, rerun_printed
    check_results(tmp_path / "out", undisturbed, FEW)
    row(
        number.name,
        f"after 30 of {FEW} clips; then the same command again",
        f"exit 3: {len(done)} results, 0 failed, {left} left; then exit 0: {FEW} results",
    )


def test_second_signal_stops_at_once(
    server: LocalTriton, archive: Path, white: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    folder = link_clips(archive, tmp_path, 20)
    os.link(white, folder / "white.mp4")
    with BatchRun(folder, tmp_path / "out", server.address, model="late") as run:
        run.wait_for_results(20)
        run.send(signal.SIGINT)
        run.wait_for_output("clips in flight. Press Ctrl-C again to stop at once")
        run.send(signal.SIGINT)
        code, printed = run.wait()
    assert code == 3, printed
    assert "stopped before the end: interrupted twice" in printed and "1 left" in printed
    assert sorted(run.read_journal()) == NAMES[:20] and run.journal.read_bytes().endswith(b"}\n")
    assert sorted(os.listdir(tmp_path / "out")) == ["journal.jsonl"]
    with BatchRun(folder, tmp_path / "out", server.address, model="late") as run:
        rerun_code, rerun_printed = run.wait()
    assert rerun_code == 0 and "21 recognized, 20 of them in an earlier run" in rerun_printed, rerun_printed
    row(
        "SIGINT twice",
        "while one of 21 clips was taking seconds; then the same command again",
        "exit 3 at once: 20 results in an intact journal; then exit 0: 21 results",
    )


def test_second_run_in_the_same_folder_is_refused(
    server: LocalTriton, archive: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    with BatchRun(archive, tmp_path / "out", server.address) as first:
        first.wait_for_results(20)
        with BatchRun(archive, tmp_path / "out", server.address, "--fresh") as second:
            second_code, second_printed = second.wait()
        assert first.process.poll() is None
        code, printed = first.wait()
    assert second_code == 1
    assert f"another run is writing to {tmp_path / 'out'}: process {first.process.pid} on " in second_printed
    assert code == 0, printed
    check_results(tmp_path / "out", undisturbed)
    assert count_duplicates(first.read_journal()) == 0
    row(
        "two runs in one folder",
        "a second one started after 20 clips",
        f"second: exit 1, naming the process that holds the folder; first: exit 0, {CLIPS} results",
    )


def test_full_disk_stops_the_run_and_keeps_its_results(
    server: LocalTriton, few: Path, undisturbed: Answers, disk: tuple[Path, Shrink], row: Row
) -> None:
    folder, shrink = disk
    output, options = folder / "out", ("--format", "jsonl", "--top-k", 1)
    with shrink(20_000), BatchRun(few, output, server.address, *options, log=folder.parent) as run:
        code, printed = run.wait()
        known = run.read_journal()
        assert run.journal.read_bytes().endswith(b"}\n")
    assert code in (1, 3), printed
    assert "No space left on device" in printed or "File too large" in printed
    assert "Make room, or choose another --output" in printed
    assert known and len(known) < FEW
    with BatchRun(few, output, server.address, *options, log=folder.parent) as run:
        rerun_code, rerun_printed = run.wait()
    assert rerun_code == 0, rerun_printed
    assert f"{len(known)} of them in an earlier run" in rerun_printed
    count = len(read_answers(output))
    row(
        "disk full",
        f"after {len(known)} of {FEW} clips; then the same command again, with free space",
        f"exit {code} with an error message, {len(known)} results kept; then exit 0: {count} results",
    )


def test_closed_terminal_does_not_stop_the_run(
    server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    terminal, run_end = pty.openpty()
    with BatchRun(few, tmp_path / "out", server.address, terminal=run_end) as run:
        run.wait_for_results(10)
        os.close(terminal)
        os.close(run_end)
        code, _ = run.wait()
    assert code == 0
    check_results(tmp_path / "out", undisturbed, FEW)
    row("terminal closed", f"after 10 of {FEW} clips, without SIGHUP", f"exit 0: {FEW} results")


def test_run_works_with_few_open_files(
    server: LocalTriton, few: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    limited = ("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    with BatchRun(few, tmp_path / "out", server.address, "--in-flight", 32, prefix=limited) as run:
        code, printed = run.wait()
    assert code == 0, printed
    check_results(tmp_path / "out", undisturbed, FEW)
    row("low limit on open files", "ulimit -n 64, 32 clips in flight", f"exit 0: {FEW} results, 0 failed")


def test_video_that_crashes_the_decoder_fails_alone(
    server: LocalTriton, archive: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    folder = link_clips(archive, tmp_path, 40)
    write_clip(folder / "z-long.mp4", 3000, (64, 64))
    with BatchRun(folder, tmp_path / "out", server.address) as run:
        run.find_decoder("z-long.mp4").send_signal(signal.SIGSEGV)
        code, printed = run.wait()
    assert code == 3, printed
    assert (
        "40 recognized; 1 failed" in printed
        and "z-long.mp4 cannot be decoded: it ends the decoder (SIGSEGV)" in printed
    )
    check_results(tmp_path / "out", undisturbed, 40)
    row(
        "crashing decoder",
        "SIGSEGV to the process decoding one of 41 clips",
        "exit 3: 40 results, only that clip failed, with an error message",
    )


def test_video_that_hangs_the_decoder_fails_alone(
    server: LocalTriton, archive: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    folder = link_clips(archive, tmp_path, 40)
    write_clip(folder / "z-long.mp4", 3000, (64, 64))
    with BatchRun(folder, tmp_path / "out", server.address, "--decode-timeout", 2) as run:
        run.find_decoder("z-long.mp4").send_signal(signal.SIGSTOP)
        code, printed = run.wait()
    assert code == 3, printed
    assert "40 recognized; 1 failed" in printed and "the decoder stood still for 2 s" in printed
    check_results(tmp_path / "out", undisturbed, 40)
    row(
        "hanging decoder",
        "SIGSTOP to the process decoding one of 41 clips, --decode-timeout 2",
        "exit 3: 40 results, only that clip failed, with an error message",
    )


def test_run_stops_after_too_many_failures(
    server: LocalTriton, archive: Path, undisturbed: Answers, tmp_path: Path, row: Row
) -> None:
    folder = link_clips(archive, tmp_path, 20)
    for number in range(100):
        (folder / f"bad{number:03}.mp4").write_text("no video")
    with BatchRun(folder, tmp_path / "out", server.address, "--max-failures", 5) as run:
        code, printed = run.wait()
    failed = len(read_json_lines(tmp_path / "out" / "errors.jsonl"))
    assert code == 3 and "5 clips have failed, as many as --max-failures allows" in printed, printed
    assert 5 <= failed < 20 and f"{100 - failed} left" in printed
    check_results(tmp_path / "out", undisturbed, 20)
    row(
        "hopeless run",
        "100 of 120 files are not videos, --max-failures 5",
        f"exit 3: 20 results, {failed} failed, {100 - failed} left",
    )
