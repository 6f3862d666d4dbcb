"""Folders of clips and results, on this machine and in remote storage."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from asl_triton.batch.ray.storage import Folder, StoredClip, find_stored_clips
from asl_triton.errors import AslTritonError, VideoError
from asl_triton.video.discovery import find_clips

REMOTE = Folder("memory://archive/clips")  # an fsspec file system in this process's memory
NAMES = ("b.mp4", "A.MP4", "d/e/c.webm", "d/notes.txt", ".hidden.mp4", ".cache/x.mp4", "d/.x.mp4")


@pytest.fixture(params=["here", "elsewhere"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """A folder with the files in NAMES, each of which contains its own name."""
    root = Folder.parse(str(tmp_path)) if request.param == "here" else REMOTE
    file_system, path = root.open()
    for name in NAMES:
        file_system.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
        file_system.pipe_file(f"{path}/{name}", name.encode())
    yield root
    if request.param == "elsewhere":
        file_system.rm(path, recursive=True)


def list_clip_names(folder: Folder, glob: str | None = None) -> list[str]:
    return [clip.name for clip in find_stored_clips(folder, glob)]


@pytest.mark.parametrize(("glob", "found"), [
    (None, ["A.MP4", "b.mp4", "d/e/c.webm"]),
    ("*.mp4", ["b.mp4"]),
    ("d/*", ["d/e/c.webm", "d/notes.txt"]),
])  # fmt: skip
def test_clips_are_found_as_in_a_local_folder(folder: Folder, glob: str | None, found: list[str]) -> None:
    assert list_clip_names(folder, glob) == found
    if folder.path is not None:
        assert [clip.name for clip in find_clips(folder.path, glob)] == found


def test_clip_is_read_up_to_max_bytes(folder: Folder) -> None:
    clip = find_stored_clips(folder)[1]
    assert (folder.read(clip, max_bytes=100), clip.fingerprint.size) == (b"b.mp4", 5)
    assert folder.read(clip, max_bytes=2) == b"b.m"  # enough to tell that the file is larger


def test_single_file_is_a_batch(folder: Folder) -> None:
    assert list_clip_names(folder.join("d", "e", "c.webm")) == ["c.webm"]


def test_stamp_changes_with_the_file(folder: Folder) -> None:
    before = {clip.name: clip.fingerprint for clip in find_stored_clips(folder)}
    file_system, path = folder.open()
    file_system.pipe_file(f"{path}/b.mp4", b"B.MP4")  # the same length
    if folder.path is not None:
        os.utime(folder.path / "b.mp4", ns=(0, 0))
    after = {clip.name: clip.fingerprint for clip in find_stored_clips(folder)}
    assert {name for name in before if before[name] != after[name]} == {"b.mp4"}


def test_deleted_file_is_a_clear_error(folder: Folder) -> None:
    clip = find_stored_clips(folder)[1]
    file_system, _ = folder.open()
    file_system.rm_file(clip.key)
    with pytest.raises(VideoError, match=r"^b\.mp4 does not exist$"):
        folder.read(clip, max_bytes=100)


@pytest.mark.parametrize("name", ["nowhere", "d/e"])
def test_folder_without_clips_is_a_clear_error(folder: Folder, name: str) -> None:
    with pytest.raises(VideoError, match=r"there is no (folder|file that matches '\*\.avi' in) "):
        find_stored_clips(folder.join(*name.split("/")), "*.avi")


def test_upload_replaces_earlier_results(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> None:
    local = tmp_path_factory.mktemp("made")
    for name in ("results.csv", "errors.jsonl"):
        (local / name).write_text("first")
    results = folder.join("results")
    assert results.path is None or not results.path.exists()
    results.write("question.json", b"{}")
    assert len(results.upload(local.iterdir(), ["errors.jsonl"])) == 2
    (local / "results.csv").write_text("second")
    (local / "errors.jsonl").unlink()
    (written,) = results.upload(local.iterdir(), ["errors.jsonl"])
    assert written == f"{results.address}/results.csv"
    file_system, path = results.open()
    assert {name.rpartition("/")[2] for name in file_system.find(path)} == {"question.json", "results.csv"}
    assert file_system.cat_file(f"{path}/results.csv") == b"second"


@pytest.mark.parametrize(("text", "message"), [
    ("nosuch://bucket/clips", "fsspec does not know nosuch:// addresses"),
    ("abfs://bucket/clips", "pip install adlfs"),
    ("memory://clips", "memory of one process"),
])  # fmt: skip
def test_unusable_address_says_what_to_do(text: str, message: str) -> None:
    with pytest.raises(AslTritonError, match=message):
        Folder.parse(text)


def test_paths_and_file_addresses_are_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder.parse("a/clips") == Folder.parse(f"file://{tmp_path}/a/clips") == Folder(f"{tmp_path}/a/clips")
    assert Folder.parse("s3://bucket/clips/").address == "s3://bucket/clips"


def test_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AslTritonError, match=r"cannot write to .*/file/results: Not a directory\. Choose another"):
        Folder.parse(str(tmp_path / "file" / "results")).write("question.json", b"{}")


def test_any_file_system_error_is_reported_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """Not an OSError, like botocore's."""

    def find(*arguments: object, **options: object) -> None:
        raise NoCredentialsError("unable to locate credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", find)
    with pytest.raises(AslTritonError, match="cannot list memory://archive/clips: unable to locate credentials"):
        find_stored_clips(REMOTE)


def test_unprintable_name_is_escaped() -> None:
    file_system, path = REMOTE.open()
    file_system.pipe_file(f"{path}/new\nline.mp4", b"")
    try:
        (clip,) = find_stored_clips(REMOTE)
    finally:
        file_system.rm(path, recursive=True)
    assert isinstance(clip, StoredClip) and (clip.name, clip.fingerprint.size) == (r"new\x0aline.mp4", 0)
    assert REMOTE.read(clip, max_bytes=10) == b""
