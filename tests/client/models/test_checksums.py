"""SHA256SUMS: exactly the listed files are copied, if their content matches."""

import subprocess
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError
from asl_triton.models.checksums import MANIFEST, copy_checked, read_checksums, write_checksums

SUM_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models, amid files that belong to no model, are unfinished, or are left by Python."""
    path = tmp_path / "model_repository"
    for file in (
        "i3d/1/model.pt",
        "i3d/2/model.pt",
        "i3d/config.pbtxt",
        "i3d/configs/wheel.pbtxt",
        "other/config.pbtxt",
    ):
        write_file(path / file, f"{file} as exported")
    for file in (
        "README.md",
        "no_model/1/model.pt",
        ".i3d-x/i3d/config.pbtxt",
        "i3d/.hidden",
        "i3d/1/__pycache__/m.pyc",
    ):
        write_file(path / file, "not served")
    return path


def write_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_all_files_of_all_models_are_listed(repository: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    assert sorted(sums) == [
        "i3d/1/model.pt",
        "i3d/2/model.pt",
        "i3d/config.pbtxt",
        "i3d/configs/wheel.pbtxt",
        "other/config.pbtxt",
    ]


def test_sha256sum_accepts_our_manifest(repository: Path) -> None:
    write_checksums(repository)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", MANIFEST], cwd=repository, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_manifest_of_sha256sum_is_accepted(repository: Path) -> None:
    command = f"find . -mindepth 2 -type f -not -path '*/.*' | xargs sha256sum > {MANIFEST}"
    subprocess.run(command, shell=True, cwd=repository, check=True)
    assert "i3d/1/model.pt" in read_checksums(repository / MANIFEST)


def test_writing_again_leaves_no_other_files(repository: Path) -> None:
    before = list_files(repository)
    write_checksums(repository)
    write_checksums(repository)
    assert list_files(repository) == sorted([*before, MANIFEST])


def test_only_listed_files_are_copied(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    del sums["i3d/2/model.pt"]
    write_file(repository / "i3d" / "1" / "model.py", "import os  # added by a stranger")
    assert copy_checked(sums, repository, tmp_path / "served") == ["i3d", "other"]
    assert list_files(tmp_path / "served") == sorted(sums)
    assert (tmp_path / "served/i3d/1/model.pt").read_text() == "i3d/1/model.pt as exported"


def test_copy_replaces_an_earlier_copy(repository: Path, tmp_path: Path) -> None:
    write_file(tmp_path / "served/old/config.pbtxt", "from before a restart")
    copy_checked(read_checksums(write_checksums(repository)), repository, tmp_path / "served")
    assert "old/config.pbtxt" not in list_files(tmp_path / "served")


def test_copy_can_leave_out_models(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    assert copy_checked(sums, repository, tmp_path / "served", without=["i3d"]) == ["other"]
    assert list_files(tmp_path / "served") == ["other/config.pbtxt"]


def test_changed_file_is_rejected_and_nothing_is_left(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    (repository / "i3d/1/model.pt").write_text("i3d/1/model.pt as exportes")
    with pytest.raises(AslTritonError, match=r"i3d/1/model\.pt is not the file that SHA256SUMS lists .*changed"):
        copy_checked(sums, repository, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_missing_file_is_rejected_and_nothing_is_left(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    (repository / "other/config.pbtxt").unlink()
    with pytest.raises(AslTritonError, match=r"lists other/config\.pbtxt, but .* does not exist: copy the model again"):
        copy_checked(sums, repository, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_unwritable_folder_is_reported(repository: Path, tmp_path: Path) -> None:
    sums = read_checksums(write_checksums(repository))
    write_file(tmp_path / "file", "")
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
def test_invalid_line_is_reported_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / MANIFEST
    path.write_text(f"# a comment\n{SUM_OF_NOTHING}  i3d/config.pbtxt\n{line}\n")
    with pytest.raises(AslTritonError, match=f"{MANIFEST}, line 3, is not"):
        read_checksums(path)


def test_missing_manifest_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(AslTritonError, match="write it with `asl-triton export`"):
        read_checksums(tmp_path / MANIFEST)


def test_binary_manifest_is_rejected(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AslTritonError, match="cannot read"):
        read_checksums(tmp_path / MANIFEST)
