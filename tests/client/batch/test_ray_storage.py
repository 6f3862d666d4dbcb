"""Folders of clips and results, on this machine and elsewhere."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from asl_triton.batch.ray.storage import Folder, StoredClip, find_stored_clips
from asl_triton.errors import AslTritonError, VideoError
from asl_triton.video.discovery import find_clips

ELSEWHERE = Folder("memory://archive/clips")  # a file system as fsspec has them, in this process
NAMES = ("b.mp4", "A.MP4", "d/e/c.webm", "d/notes.txt", ".hidden.mp4", ".cache/x.mp4", "d/.x.mp4")


@pytest.fixture(params=["here", "elsewhere"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """A folder with files of those names, each with its name in it."""
    found = Folder.parse(str(tmp_path)) if request.param == "here" else ELSEWHERE
    file_system, path = found.open()
    for name in NAMES:
        file_system.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
        file_system.pipe_file(f"{path}/{name}", name.encode())
    yield found
    if request.param == "elsewhere":
        file_system.rm(path, recursive=True)


def clips_in(folder: Folder, glob: str | None = None) -> list[str]:
    return [clip.name for clip in find_stored_clips(folder, glob)]


@pytest.mark.parametrize(("glob", "found"), [
    (None, ["A.MP4", "b.mp4", "d/e/c.webm"]),
    ("*.mp4", ["b.mp4"]),
    ("d/*", ["d/e/c.webm", "d/notes.txt"]),
])  # fmt: skip
def test_clips_are_found_as_in_a_folder_of_this_machine(folder: Folder, glob: str | None, found: list[str]) -> None:
    assert clips_in(folder, glob) == found
    if folder.path is not None:
        assert [clip.name for clip in find_clips(folder.path, glob)] == found


def test_clips_are_read(folder: Folder) -> None:
    clip = find_stored_clips(folder)[1]
    assert (folder.read(clip, max_bytes=100), clip.fingerprint.size) == (b"b.mp4", 5)
    assert folder.read(clip, max_bytes=2) == b"b.m"  # enough to see that it is more


def test_one_file_is_a_batch_too(folder: Folder) -> None:
    assert clips_in(folder.join("d", "e", "c.webm")) == ["c.webm"]


def test_stamp_changes_with_the_file(folder: Folder) -> None:
    before = {clip.name: clip.fingerprint for clip in find_stored_clips(folder)}
    file_system, path = folder.open()
    file_system.pipe_file(f"{path}/b.mp4", b"B.MP4")  # no longer, no shorter
    if folder.path is not None:
        os.utime(folder.path / "b.mp4", ns=(0, 0))
    after = {clip.name: clip.fingerprint for clip in find_stored_clips(folder)}
    assert {name for name in before if before[name] != after[name]} == {"b.mp4"}


def test_file_that_is_gone_is_that_clip_s_failure(folder: Folder) -> None:
    clip = find_stored_clips(folder)[1]
    file_system, _ = folder.open()
    file_system.rm_file(clip.key)
    with pytest.raises(VideoError, match=r"^b\.mp4 does not exist$"):
        folder.read(clip, max_bytes=100)


@pytest.mark.parametrize("name", ["nowhere", "d/e"])
def test_nothing_to_do_is_a_sentence(folder: Folder, name: str) -> None:
    with pytest.raises(VideoError, match=r"there is no (folder|file that matches '\*\.avi' in) "):
        find_stored_clips(folder.join(*name.split("/")), "*.avi")


def test_results_replace_those_before(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = tmp_path_factory.mktemp("made")
    for name in ("results.csv", "errors.jsonl"):
        (made / name).write_text("first")
    results = folder.join("results")
    assert results.path is None or not results.path.exists()
    results.write("question.json", b"{}")
    assert len(results.upload(made.iterdir(), ["errors.jsonl"])) == 2
    (made / "results.csv").write_text("second")
    (made / "errors.jsonl").unlink()
    (written,) = results.upload(made.iterdir(), ["errors.jsonl"])
    assert written == f"{results.address}/results.csv"
    file_system, path = results.open()
    assert {name.rpartition("/")[2] for name in file_system.find(path)} == {"question.json", "results.csv"}
    assert file_system.cat_file(f"{path}/results.csv") == b"second"


@pytest.mark.parametrize(("text", "says"), [
    ("nosuch://bucket/clips", "fsspec does not know nosuch:// addresses"),
    ("abfs://bucket/clips", "pip install adlfs"),
    ("memory://clips", "memory of one process"),
])  # fmt: skip
def test_address_that_cannot_be_reached_says_what_to_do(text: str, says: str) -> None:
    with pytest.raises(AslTritonError, match=says):
        Folder.parse(text)


def test_paths_and_file_addresses_are_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder.parse("a/clips") == Folder.parse(f"file://{tmp_path}/a/clips") == Folder(f"{tmp_path}/a/clips")
    assert Folder.parse("s3://bucket/clips/").address == "s3://bucket/clips"


def test_folder_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AslTritonError, match=r"cannot write to .*/file/results: Not a directory\. Choose another"):
        Folder.parse(str(tmp_path / "file" / "results")).write("question.json", b"{}")


def test_whatever_a_file_system_raises_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """As that of Amazon's library: no OSError."""

    def find(*arguments: object, **options: object) -> None:
        raise NoCredentialsError("unable to locate credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", find)
    with pytest.raises(AslTritonError, match="cannot list memory://archive/clips: unable to locate credentials"):
        find_stored_clips(ELSEWHERE)


def test_name_that_is_no_text_is_made_one() -> None:
    file_system, path = ELSEWHERE.open()
    file_system.pipe_file(f"{path}/new\nline.mp4", b"")
    try:
        (clip,) = find_stored_clips(ELSEWHERE)
    finally:
        file_system.rm(path, recursive=True)
    assert isinstance(clip, StoredClip) and (clip.name, clip.fingerprint.size) == (r"new\x0aline.mp4", 0)
    assert ELSEWHERE.read(clip, max_bytes=10) == b""
