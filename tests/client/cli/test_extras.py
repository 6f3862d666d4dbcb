"""What commands report when the package of an extra is missing."""

import sys
from pathlib import Path

import pytest

from asl_triton.extras import format_install_command
from asl_triton.writers.html import load_templates
from tests.client import videos
from tests.client.grpc_server import Triton, serving
from tests.command_line import asl_triton

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def base_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that no extra is installed."""
    load_templates.cache_clear()
    for module in ("pyarrow", "pympi", "jinja2"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize(("arguments", "module", "extra"), [
    (("batch", "--format", "csv,parquet"), "pyarrow", "parquet"),
    (("batch", "--timeline", "--format", "vtt,eaf"), "pympi", "elan"),
    (("evaluate",), "jinja2", "reports"),
])  # fmt: skip
def test_missing_package_is_reported_before_any_request(
    base_install: None, tmp_path: Path, capsys: Capture, arguments: tuple[str, ...], module: str, extra: str
) -> None:
    (tmp_path / "book").mkdir()
    videos.clip(tmp_path / "book" / "a.mp4", num_frames=9)
    command, *options = arguments
    with serving(Triton()) as triton:
        output = tmp_path / "out"
        done = asl_triton(capsys, command, tmp_path, *options, "--output", output, "--server", triton.address)
        assert triton.asked == []
    assert done.code == 1 and not output.exists()
    assert (
        f"this command needs the Python module '{module}', which is not installed: {format_install_command(extra)}"
    ) in done.output


def test_base_install_writes_tables_and_subtitles(base_install: None, tmp_path: Path, capsys: Capture) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    videos.clip(clips / "a.mp4", num_frames=9)
    with serving(Triton()) as triton:
        for options in ((), ("--format", "txt,csv,jsonl"), ("--timeline", "--format", "csv,jsonl,vtt")):
            output = tmp_path / f"out{len(options)}"
            common = ("--output", output, "--server", triton.address, "--decoding", "threads")
            done = asl_triton(capsys, "batch", clips, *options, *common)
            assert done.code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out0").iterdir()) == [
        "journal.jsonl", "results.csv", "results.jsonl",
    ]  # fmt: skip
