"""Reading glosses from label files."""

from pathlib import Path

import pytest

from asl_triton.errors import LabelsError
from asl_triton.labels import MAX_LABELS_BYTES, read_labels


@pytest.mark.parametrize("content", [
    b"book\ndrink\nthank you\n",
    b"book\ndrink\nthank you",
    b"book\r\ndrink\r\nthank you\r\n\r\n",
    b"\xef\xbb\xbfbook\n drink \nthank you\n",
    b"0\tbook\n1\tdrink\n2\tthank you\n",
])  # fmt: skip
def test_glosses_are_in_class_order(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    assert read_labels(path) == ("book", "drink", "thank you")


@pytest.mark.parametrize(("content", "says"), [
    (b"", "are empty"), (b"\n\n", "are empty"),
    (b"book\n\ndrink\n", "line 2 is empty"),
    (b"0\tbook\n1\t\n", "line 2 is empty"),
    (b"book\ndrink\nbook\n", r"lists 'book' 2 times \(lines 1, 3\)"),
    (b"0\tbook\n2\tdrink\n", "line 2: expected index 1, found '2'"),
    (b"one\tbook\n", "line 1: expected index 0, found 'one'"),
    (b"\xff\xfe\x00b", "not UTF-8"),
    (b"x" * (MAX_LABELS_BYTES + 1), "too large for a list of glosses"),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_invalid_file_is_rejected(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(LabelsError, match=says) as raised:
        read_labels(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["nowhere.txt", "."])
def test_unreadable_file_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabelsError, match="cannot read the labels"):
        read_labels(tmp_path / name)
