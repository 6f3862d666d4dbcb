"""The signer detector is downloaded from a local server, checked, and stored where the client looks for it."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from asl_triton.cli.fetch import fetch
from asl_triton.errors import AslTritonError, CheckpointError
from asl_triton.signer.person_detector import FOLDER_VARIABLE, MODEL, find_detector_folder, find_people, load_detector
from asl_triton_export.pretrained import signer_detector
from asl_triton_export.pretrained.signer_detector import FILES, fetch_detector
from tests.client.signer.bright_detector import save_bright_detector
from tests.client.signer.test_person_detector import paint_person
from tests.export.file_server import FileServer, Served, serve_files

app = typer.Typer()
app.command()(fetch)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Serve a network with the detector's input and outputs, and replace the published checksums with its own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_detector.cache_clear()
    (tmp_path / "made").mkdir()
    save_bright_detector(tmp_path / "made" / MODEL)
    with serve_files() as state:
        files = []
        for file in FILES:
            content = (tmp_path / "made" / file.filename).read_bytes()
            state.files[f"/{file.filename}"] = Served(content)
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(dataclasses.replace(file, url=f"{state.url}/{file.filename}", sha256=sha256))
        monkeypatch.setattr(signer_detector, "FILES", tuple(files))
        yield state


def test_fetched_detector_is_used(server: FileServer, tmp_path: Path) -> None:
    assert find_people([paint_person()]) is None
    load_detector.cache_clear()
    result = CliRunner().invoke(app, ["signer-detector"], catch_exceptions=False)
    folder = tmp_path / "cache" / "asl-triton" / "signer-detector"
    assert result.exit_code == 0 and "is ready" in result.stdout and "Apache-2.0" in result.stdout
    assert find_detector_folder() == folder
    assert {path.name for path in folder.iterdir()} == {file.filename for file in FILES}
    people = find_people([paint_person()])
    assert people is not None and len(people) == 1


def test_second_fetch_downloads_nothing(server: FileServer) -> None:
    folder, is_new = fetch_detector()
    num_requests = len(server.requests)
    assert is_new and fetch_detector() == (folder, False) and len(server.requests) == num_requests
    result = CliRunner().invoke(app, ["signer-detector", "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {"folder": str(folder), "is_new": False, "archive": None}
    assert fetch_detector(force=True) == (folder, True) and len(server.requests) > num_requests


def test_damaged_detector_is_fetched_again(server: FileServer) -> None:
    folder, _ = fetch_detector()
    (folder / MODEL).write_text("damaged")
    assert fetch_detector() == (folder, True)


def test_file_that_differs_from_the_published_one_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.files[f"/{MODEL}"] = Served(b"another network")
    with pytest.raises(CheckpointError, match="differs from the published file"):
        fetch_detector(tmp_path / "detector")
    assert not (tmp_path / "detector").exists()
    assert (tmp_path / ".downloads" / f"{MODEL}.refused").read_bytes() == b"another network"


def test_folder_with_other_files_is_left_alone(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(AslTritonError, match=r"holds something else \(thesis.txt\)"):
        fetch_detector(tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_detector_takes_no_labels(server: FileServer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["signer-detector", "--labels", str(tmp_path / "x")])
    assert isinstance(result.exception, AslTritonError) and "no glosses" in str(result.exception)


def test_list_names_the_detector() -> None:
    assert "asl-triton fetch signer-detector" in CliRunner().invoke(app, ["--list"]).stdout
