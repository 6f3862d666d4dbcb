"""What `asl-triton bench` prints and writes for made-up measurements."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from asl_triton.bench.load import ClosedLoop, OpenLoop
from asl_triton.bench.measurement import Level
from asl_triton.bench.report import Report
from asl_triton.extras import format_install_command
from asl_triton.models.served import read_model
from tests.client.loads import levels, report_of, window
from tests.client.served import fake
from tests.command_line import CommandResult, asl_triton

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def make_report(*measured: Level) -> Report:
    return report_of(measured, asyncio.run(read_model(fake())))


def run_bench(capsys: Capture, monkeypatch: Patch, report: Report, *more: object) -> CommandResult:
    """Run `asl-triton bench` with `report` as its measurements."""
    monkeypatch.setattr("asl_triton.cli.bench.measure_all", lambda *arguments: report)
    return asl_triton(capsys, "bench", *more)


@pytest.mark.parametrize(("columns", "tables"), [(80, 2), (100, 2), (200, 1)])
def test_table_folds_rather_than_losing_figures(
    columns: int, tables: int, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    slow = window(2.0, 65.432, queue_s=246.9, compute_s=691.3, executions=10, sent_bytes=192_675_840)
    windows = (replace(slow, not_started=1234),) * 3
    measured = Level(ClosedLoop(256), windows, True, {"too busy": 65_432}), Level(OpenLoop(1234.5), windows, True, {})
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run_bench(capsys, monkeypatch, make_report(*measured), "--output", tmp_path)
    assert done.code == 3
    lines = done.out.split("milliseconds;")[0].splitlines()
    assert max(map(len, lines)) <= columns
    for label, failed in (("256 in flight", "65,432"), ("1234.5 per second", "0")):
        rows = [line.removeprefix(label).split() for line in lines if line.startswith(label)]
        figures = ["2", *["65,432"] * 4, *["12,345", "34,565", "2.00", "9,634"], failed, "3,702"]
        assert len(rows) == tables
        assert sorted(figure for row in rows for figure in row) == sorted(figures)


def test_one_table_where_it_fits(tmp_path: Path, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run_bench(capsys, monkeypatch, make_report(*levels(10, 18, 18.5)), "--output", tmp_path)
    assert done.code == 0
    assert done.out.count("in flight") == 3 + 1  # plus the knee's sentence
    assert "load clips/s p50 p90 p95 p99 queue compute batch kB sent" in done.output


@pytest.mark.parametrize("module", ["jinja2", "pygal"])
def test_without_the_extra_only_the_page_is_missing(
    module: str, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    monkeypatch.delitem(sys.modules, "asl_triton.bench.page", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    done = run_bench(capsys, monkeypatch, make_report(*levels(10, 18)), "--output", tmp_path, "--json")
    assert done.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert json.loads(done.out) == json.loads((tmp_path / "bench.json").read_text())
    (line,) = done.err.splitlines()
    assert line == (
        f"warning bench.html needs the Python module '{module}', which is not installed: "
        f"{format_install_command('reports')}"
    )
