import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from asl_triton.cli.fetch import DownloadProgress, fetch
from asl_triton.errors import AslTritonError
from asl_triton_export.pretrained.catalog import PUBLISHED
from tests.export.file_server import FileServer, serve_files
from tests.export.published_weights import publish

app = typer.Typer()
app.command()(fetch)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "120")
    with serve_files() as state:
        for name, weights in publish(state).items():
            monkeypatch.setitem(PUBLISHED, name, weights)
        yield state


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_without_a_name_all_weights_are_listed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    for part in (*PUBLISHED, "46.82", "66.31", "C-UDA", "recommended", "asl-triton fetch asl-citizen"):
        assert part in result.stdout
    shown = " ".join(result.stdout.replace("│", " ").split())
    for weights in PUBLISHED.values():
        assert f"on {weights.test_set} license: {weights.license}" in shown


def test_list_prints_json() -> None:
    listed = json.loads(CliRunner().invoke(app, ["--list", "--json"]).stdout)
    assert [row["name"] for row in listed] == list(PUBLISHED)
    assert (listed[0]["top1"], listed[0]["language"]) == (63.10, "American Sign Language")
    assert listed[0]["test_set"] and listed[0]["good_for"]
    assert listed[-1]["num_classes"] == 100


def test_fetch_prints_the_bundle_and_the_next_step(server: FileServer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["wlasl5", "--to", str(tmp_path / "w")], catch_exceptions=False)
    assert (tmp_path / "w" / "weights.pt").exists()
    assert f"Next: asl-triton export {tmp_path / 'w'}" in result.stdout
    assert f"{tmp_path / '.downloads' / 'archive.zip'}" in result.stdout
    assert "C-UDA" in result.stdout
    terms, downloading = (result.stderr.index(part) for part in ("C-UDA", "Downloading archive.zip"))
    assert terms < downloading
    assert "archive.zip: 100 %" in result.stderr
    again = CliRunner().invoke(app, ["wlasl5", "--to", str(tmp_path / "w")], catch_exceptions=False)
    assert "already exists" in again.stdout


def test_fetch_prints_json(server: FileServer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bsl1k", "--to", str(tmp_path / "b"), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {"folder": str(tmp_path / "b"), "is_new": True, "archive": None}


def test_unknown_name_raises_our_error() -> None:
    with pytest.raises(AslTritonError, match="choose one of"):
        CliRunner().invoke(app, ["wlasl99"], catch_exceptions=False)


def test_terminal_shows_a_progress_bar() -> None:
    screen = StringIO()
    with DownloadProgress(Console(file=screen, force_terminal=True, width=100)) as progress:
        progress.show_bytes("model.pth.tar", 10_000_000, 100_000_000)
        progress.show_bytes("model.pth.tar", 100_000_000, 100_000_000)
        progress.show_step("Checking [it]")
    assert "model.pth.tar" in screen.getvalue()
    assert "100.0/100.0 MB" in screen.getvalue()
    assert "Checking [it]" in screen.getvalue()


def test_file_of_unknown_size_prints_one_line() -> None:
    screen = StringIO()
    with DownloadProgress(Console(file=screen)) as progress:
        progress.show_bytes("info.pkl", 1000, None)
        progress.show_bytes("info.pkl", 2000, None)
    assert screen.getvalue() == "Downloading info.pkl\n"
