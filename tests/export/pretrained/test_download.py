import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gdown.exceptions import FileURLRetrievalError

from asl_triton.errors import AslTritonError
from asl_triton_export.pretrained import download as module
from asl_triton_export.pretrained.download import RemoteFile, download, download_lock
from tests.export.file_server import FileServer, Served, serve_files

CONTENT = bytes(range(256)) * 12_000  # 3 MB: gdown reads and keeps at least 512 KiB at a time
HALF = len(CONTENT) // 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "DRIVE_RETRIES", 0)
    with serve_files() as state:
        yield state


@pytest.fixture(params=[False, True], ids=["web", "drive"])
def remote(request: pytest.FixtureRequest, server: FileServer) -> RemoteFile:
    """The same file, downloaded with httpx or gdown."""
    server.files["/model.bin"] = Served(CONTENT)
    return RemoteFile(f"{server.url}/model.bin", "model.bin", on_drive=request.param)


def count_unfinished_bytes(folder: Path) -> int:
    """Count the bytes in the unfinished files of a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.part"))


def test_file_is_downloaded_and_progress_is_reported(remote: RemoteFile, tmp_path: Path) -> None:
    progress: list[tuple[str, int, int | None]] = []
    path = download(remote, tmp_path / "deep" / "er", on_bytes=lambda *args: progress.append(args))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["model.bin"]
    assert progress[-1] == ("model.bin", len(CONTENT), len(CONTENT))


def test_existing_file_is_used_without_a_request(remote: RemoteFile, server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"by hand")
    assert download(remote, tmp_path).read_bytes() == b"by hand"
    assert server.requests == []
    assert download(remote, tmp_path, force=True).read_bytes() == CONTENT


def test_interrupted_download_resumes_in_the_next_call(remote: RemoteFile, server: FileServer, tmp_path: Path) -> None:
    server.files["/model.bin"].cuts = [HALF, 0, 0]
    with pytest.raises(AslTritonError, match=r"interrupted after .* MB, which are kept .* run this again") as raised:
        download(remote, tmp_path)
    assert remote.url in str(raised.value)
    assert str(tmp_path / "model.bin") in str(raised.value)
    assert not (tmp_path / "model.bin").exists()
    kept = count_unfinished_bytes(tmp_path)
    assert 0 < kept <= HALF
    server.files["/model.bin"].cuts = []
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert server.get_ranges("/model.bin")[-1] == f"bytes={kept}-"
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]


def test_lost_connection_resumes_in_the_same_call(server: FileServer, tmp_path: Path) -> None:
    server.files["/model.bin"] = Served(CONTENT, cuts=[HALF, 1000])
    assert download(RemoteFile(f"{server.url}/model.bin", "model.bin"), tmp_path).read_bytes() == CONTENT
    assert server.get_ranges("/model.bin") == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]


def test_killed_download_resumes(remote: RemoteFile, server: FileServer, tmp_path: Path) -> None:
    server.files["/model.bin"].stall_after = HALF
    code = (
        "from pathlib import Path; from asl_triton_export.pretrained.download import RemoteFile, download\n"
        f"download(RemoteFile({remote.url!r}, 'model.bin', on_drive={remote.on_drive}), Path({str(tmp_path)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while count_unfinished_bytes(tmp_path) < HALF // 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    kept = count_unfinished_bytes(tmp_path)
    assert kept >= HALF // 2
    assert not (tmp_path / "model.bin").exists()
    server.files["/model.bin"].stall_after = None
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert server.get_ranges("/model.bin")[-1] == f"bytes={kept}-"


def test_download_restarts_if_the_server_does_not_support_ranges(
    remote: RemoteFile, server: FileServer, tmp_path: Path
) -> None:
    server.files["/model.bin"] = Served(CONTENT, takes_ranges=False, cuts=[HALF])
    if not remote.on_drive:
        server.files["/model.bin"].cuts = [HALF, 10]
    with pytest.raises(AslTritonError, match="was interrupted"):
        download(remote, tmp_path)
    assert download(remote, tmp_path).read_bytes() == CONTENT


def test_changed_file_is_not_mixed_with_the_old_one(server: FileServer, tmp_path: Path) -> None:
    remote = RemoteFile(f"{server.url}/model.bin", "model.bin")
    server.files["/model.bin"] = Served(CONTENT, cuts=[HALF, 0])
    with pytest.raises(AslTritonError):
        download(remote, tmp_path)
    server.files["/model.bin"] = Served(CONTENT[::-1], etag='"v2"')
    assert download(remote, tmp_path).read_bytes() == CONTENT[::-1]


def test_download_restarts_without_an_etag(server: FileServer, tmp_path: Path) -> None:
    server.files["/model.bin"] = Served(CONTENT, etag=None, cuts=[HALF, 0])
    remote = RemoteFile(f"{server.url}/model.bin", "model.bin")
    with pytest.raises(AslTritonError):
        download(remote, tmp_path)
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert set(server.get_ranges("/model.bin")) == {None}


def test_complete_part_file_is_used(server: FileServer, tmp_path: Path) -> None:
    server.files["/model.bin"] = Served(CONTENT)
    (tmp_path / "model.bin.part").write_bytes(CONTENT)
    (tmp_path / "model.bin.part.tag").write_text('"v1"')
    assert download(RemoteFile(f"{server.url}/model.bin", "model.bin"), tmp_path).read_bytes() == CONTENT
    assert server.get_ranges("/model.bin") == [f"bytes={len(CONTENT)}-"]


def test_part_file_that_is_too_long_is_discarded(server: FileServer, tmp_path: Path) -> None:
    server.files["/model.bin"] = Served(CONTENT)
    (tmp_path / "model.bin.part").write_bytes(CONTENT + b"more")
    (tmp_path / "model.bin.part.tag").write_text('"v1"')
    assert download(RemoteFile(f"{server.url}/model.bin", "model.bin"), tmp_path).read_bytes() == CONTENT


def test_redirect_is_followed(remote: RemoteFile, server: FileServer, tmp_path: Path) -> None:
    server.files["/elsewhere"] = server.files["/model.bin"]
    server.files["/model.bin"] = Served(b"", status=302, location="/elsewhere")
    assert download(remote, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page_instead_of_the_file_is_refused(
    remote: RemoteFile, server: FileServer, tmp_path: Path, content_type: str
) -> None:
    server.files["/model.bin"] = Served(b"\n<!DOCTYPE html><p>Quota exceeded", content_type=content_type)
    with pytest.raises(AslTritonError, match="web page instead of the file") as raised:
        download(remote, tmp_path)
    assert f"save the file as {tmp_path / 'model.bin'}" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "no longer exists"), (403, "was refused"), (429, "try again later"), (503, "try again later")],
)
def test_http_error_says_what_to_do(
    remote: RemoteFile, server: FileServer, tmp_path: Path, status: int, words: str
) -> None:
    server.files["/model.bin"] = Served(b"no", status=status)
    with pytest.raises(AslTritonError, match=words) as raised:
        download(remote, tmp_path)
    for part in (remote.url, str(status), f"save the file as {tmp_path / 'model.bin'}"):
        assert part in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_unreachable_server_is_reported(remote: RemoteFile, tmp_path: Path) -> None:
    unreachable = RemoteFile("http://127.0.0.1:9/model.bin", "model.bin", on_drive=remote.on_drive)
    with pytest.raises(AslTritonError, match=r"^cannot download .* \(Connection refused\)\. Check the internet"):
        download(unreachable, tmp_path)


def test_invalid_address_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AslTritonError, match="cannot download"):
        download(RemoteFile("http://[broken", "model.bin"), tmp_path)


def test_google_drive_quota_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise FileURLRetrievalError("Failed to retrieve file url:\n\n\tToo many users have viewed or downloaded")

    monkeypatch.setattr(module, "_gdown", refuse)
    remote = RemoteFile("https://drive.google.com/uc?id=x", "archive.zip", on_drive=True)
    with pytest.raises(AslTritonError, match=r"does not let programs download .*uc\?id=x") as raised:
        download(remote, tmp_path)
    assert f"save the file as {tmp_path / 'archive.zip'}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_several_leftover_files_of_gdown_restart_the_download(server: FileServer, tmp_path: Path) -> None:
    server.files["/model.bin"] = Served(CONTENT)
    for name in ("abcdefgh", "ijklmnop"):
        (tmp_path / f"model.bin.drive{name}.part").write_bytes(b"half of something")
    assert download(RemoteFile(f"{server.url}/model.bin", "model.bin", on_drive=True), tmp_path).read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_reported(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/model.bin"] = Served(CONTENT)
    (tmp_path / "model.bin.part").symlink_to("/dev/full")
    monkeypatch.setattr(module, "_forget", lambda part: None)  # it would remove the link to /dev/full
    with pytest.raises(AslTritonError, match="disk is full"):
        download(RemoteFile(f"{server.url}/model.bin", "model.bin"), tmp_path)


def test_unwritable_folder_is_reported(remote: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AslTritonError, match="cannot write"):
        download(remote, tmp_path / "file" / "folder")


def test_second_download_to_a_folder_is_refused(tmp_path: Path) -> None:
    with (
        download_lock(tmp_path),
        pytest.raises(AslTritonError, match="another asl-triton fetch"),
        download_lock(tmp_path),
    ):
        pass
    with download_lock(tmp_path):
        pass
