"""SHA256SUMS: what is listed is what is copied, to the byte."""

import subprocess
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError
from asl_triton.models.checksums import MANIFEST, copy_checked, read_checksums, write_checksums

SUM_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models; what is no model, unfinished or left by Python is beside and in them."""
    path = tmp_path / "model_repository"
    for file in (
        "i3d/1/model.pt",
        "i3d/2/model.pt",
        "i3d/config.pbtxt",
        "i3d/configs/wheel.pbtxt",
        "other/config.pbtxt",
    ):
        write(path / file, f"{file} as exported")
    for file in (
        "README.md",
        "no_model/1/model.pt",
        ".i3d-x/i3d/config.pbtxt",
        "i3d/.hidden",
        "i3d/1/__pycache__/m.pyc",
    ):
        write(path / file, "not served")
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_file_of_every_model_is_listed(repository: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    assert sorted(sums) == [
        "i3d/1/model.pt",
        "i3d/2/model.pt",
        "i3d/config.pbtxt",
        "i3d/configs/wheel.pbtxt",
        "other/config.pbtxt",
    ]


def test_coreutils_reads_it(repository: Path) -> None:
    write_checksums(repository)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", MANIFEST], cwd=repository, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_coreutils_writes_is_read(repository: Path) -> None:
    command = f"find . -mindepth 2 -type f -not -path '*/.*' | xargs sha256sum > {MANIFEST}"
    subprocess.run(command, shell=True, cwd=repository, check=True)
    assert "i3d/1/model.pt" in read_checksums(repository / MANIFEST)


def test_writing_again_leaves_nothing_else(repository: Path) -> None:
    before = files(repository)
    write_checksums(repository)
    write_checksums(repository)
    assert files(repository) == sorted([*before, MANIFEST])


def test_copy_has_what_is_listed_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    del sums["i3d/2/model.pt"]
    write(repository / "i3d" / "1" / "model.py", "import os  # brought by a stranger")
    assert copy_checked(sums, repository, tmp_path / "served") == ["i3d", "other"]
    assert files(tmp_path / "served") == sorted(sums)
    assert (tmp_path / "served/i3d/1/model.pt").read_text() == "i3d/1/model.pt as exported"


def test_copy_replaces_an_earlier_one(repository: Path, tmp_path: Path) -> None:
    write(tmp_path / "served/old/config.pbtxt", "from before a restart")
    copy_checked(read_checksums(write_checksums(repository)), repository, tmp_path / "served")
    assert "old/config.pbtxt" not in files(tmp_path / "served")


def test_copy_leaves_models_out(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    assert copy_checked(sums, repository, tmp_path / "served", without=["i3d"]) == ["other"]
    assert files(tmp_path / "served") == ["other/config.pbtxt"]


def test_changed_file_is_refused_and_nothing_stays(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    (repository / "i3d/1/model.pt").write_text("i3d/1/model.pt as exportes")
    with pytest.raises(AslTritonError, match=r"i3d/1/model\.pt is not the file that SHA256SUMS lists .*changed"):
        copy_checked(sums, repository, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_missing_file_is_refused_and_nothing_stays(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    (repository / "other/config.pbtxt").unlink()
    with pytest.raises(AslTritonError, match=r"lists other/config\.pbtxt, but .* does not exist: copy the model again"):
        copy_checked(sums, repository, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_folder_that_cannot_be_written_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    write(tmp_path / "file", "")
    with pytest.raises(AslTritonError, match="cannot copy the models of"):
        copy_checked(sums, repository, tmp_path / "file" / "served")


@pytest.mark.parametrize(
    "line",
    [
        "no sum  i3d/1/model.pt",
        f"{SUM_OF_NOTHING} i3d/1/model.pt",
        f"{SUM_OF_NOTHING}  /etc/passwd",
        f"{SUM_OF_NOTHING}  i3d/../../../etc/passwd",
        f"{SUM_OF_NOTHING}  README.md",
        f"{SUM_OF_NOTHING}",
    ],
)
def test_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / MANIFEST
    path.write_text(f"# a comment\n{SUM_OF_NOTHING}  i3d/config.pbtxt\n{line}\n")
    with pytest.raises(AslTritonError, match=f"{MANIFEST}, line 3, is not"):
        read_checksums(path)


def test_manifest_that_is_not_there_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(AslTritonError, match="write it with `asl-triton export`"):
        read_checksums(tmp_path / MANIFEST)


def test_manifest_of_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AslTritonError, match="cannot read"):
        read_checksums(tmp_path / MANIFEST)
