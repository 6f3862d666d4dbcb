"""Labeled clips on disk: both layouts, and the mistakes people make."""

import json
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError, LabelsError, VideoError
from asl_triton.evaluation.dataset import read_dataset

LABELS = ("book", "drink", "hello")


def create_files(root: Path, *names: str) -> Path:
    """Create empty files: the reader opens none of them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write_split(path: Path, **classes: object) -> Path:
    """Write a split JSON of test videos, each with its class."""
    path.write_text(json.dumps({name: {"subset": "test", "action": [c, 1, -1]} for name, c in classes.items()}))
    return path


def test_subfolders_are_glosses_with_clips_at_any_depth(tmp_path: Path) -> None:
    create_files(tmp_path, "hello/a.mp4", "book/anna/1.mp4", "book/2.MOV", "book/notes.txt", ".git/x.mp4")
    dataset = read_dataset(tmp_path)
    assert dataset.glosses == ("book", "hello")
    assert [(c.name, c.gloss, c.class_id) for c in dataset.clips] == [
        ("book/2.MOV", "book", 0),
        ("book/anna/1.mp4", "book", 0),
        ("hello/a.mp4", "hello", 1),
    ]
    assert all(clip.path.is_file() and clip.subset is None for clip in dataset.clips)
    assert dataset.warnings == ()


def test_labels_set_the_class_order(tmp_path: Path) -> None:
    create_files(tmp_path, "hello/a.mp4", "book/b.mp4")
    dataset = read_dataset(tmp_path, labels=LABELS)
    assert dataset.glosses == LABELS
    assert [(c.gloss, c.class_id) for c in dataset.clips] == [("book", 0), ("hello", 2)]


def test_oddities_in_a_folder_are_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    create_files(
        tmp_path, "hello/a.mp4", "Book/b.mp4", "nonsense/c.mp4", "nonsense/d.mp4", "drink/text.txt", "loose.mp4"
    )
    dataset = read_dataset(tmp_path, labels=LABELS)
    assert [(c.name, c.gloss) for c in dataset.clips] == [("Book/b.mp4", "book"), ("hello/a.mp4", "hello")]
    assert dataset.unknown == ("nonsense",)
    assert dataset.warnings == (
        "1 gloss folder has no video: drink",
        "1 video is outside the gloss folders and left out",
        "1 gloss folder is not among the labels, and 2 clips are left out: nonsense",
    )


def test_folders_that_differ_only_by_case_are_reported(tmp_path: Path) -> None:
    create_files(tmp_path, "Book/a.mp4", "book/b.mp4")
    alone, known = read_dataset(tmp_path), read_dataset(tmp_path, labels=LABELS)
    assert alone.glosses == ("Book", "book")
    assert [c.gloss for c in known.clips] == ["book", "book"]
    warning = "the gloss folders Book, book differ only by case: rename one if they are the same sign"
    assert alone.warnings == known.warnings == (warning,)


def test_glosses_that_differ_only_by_case_stay_apart_if_the_labels_have_both(tmp_path: Path) -> None:
    create_files(tmp_path, "Polish/a.mp4", "polish/b.mp4", "POLISH/c.mp4")
    dataset = read_dataset(tmp_path, labels=("polish", "Polish"))
    assert [(c.name, c.class_id) for c in dataset.clips] == [("Polish/a.mp4", 1), ("polish/b.mp4", 0)]
    assert dataset.unknown == ("POLISH",)


def test_accents_match_in_any_unicode_form(tmp_path: Path) -> None:
    create_files(tmp_path, "cafe\u0301/a.mp4")
    assert read_dataset(tmp_path, labels=("caf\u00e9",)).clips[0].class_id == 0


def test_split_selects_a_subset_and_lists_missing_videos(tmp_path: Path) -> None:
    create_files(tmp_path / "videos", "00001.mp4", "00002.mkv", "00002.txt", "00004.mp4", "99999.mp4")
    split = write_split(tmp_path / "split.json", **{"00001": 2, "00002": 0, "00003": 1})
    entries = json.loads(split.read_text())
    entries["00004"] = {"subset": "train", "action": [1, 7686, 7832]}
    split.write_text(json.dumps(entries))
    dataset = read_dataset(split, subset="test", labels=LABELS)
    assert [(c.name, c.path.name, c.gloss, c.subset) for c in dataset.clips] == [
        ("00001", "00001.mp4", "hello", "test"),
        ("00002", "00002.mkv", "book", "test"),
    ]
    assert dataset.missing == ("00003",)
    assert dataset.glosses == LABELS
    assert len(read_dataset(split, labels=LABELS).clips) == 3


def test_official_split_with_two_videos_lists_2036_as_missing(shared_folder: Path) -> None:
    wlasl = shared_folder / "wlasl"
    labels = [line.split("\t")[1] for line in (wlasl / "wlasl_class_list.txt").read_text().splitlines()]
    dataset = read_dataset(wlasl / "nslt_100.json", labels=labels[:100])
    assert [(clip.name, clip.gloss) for clip in dataset.clips] == [("07068", "book"), ("07069", "book")]
    assert len(dataset.missing) == 2036


def test_names_cannot_escape_the_video_folder(tmp_path: Path) -> None:
    create_files(tmp_path, "secret.mp4", "videos/1.mp4")
    split = write_split(tmp_path / "split.json", **{"../secret": 0, "1": 0})
    assert read_dataset(split, labels=LABELS).missing == ("../secret",)


@pytest.mark.parametrize(("content", "message"), [
    ("no json", "is not JSON"),
    ("\x00\x01", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("", "is not JSON"),
    ("{}", "is not a split of WLASL"),
    ('[{"gloss": "book", "instances": []}]', "lists no videos"),
    ('{"1": {"subset": "test"}}', "video '1' should be"),
    ('{"1": 7}', "not 7"),
    ('{"1": {"subset": "test", "action": [-1, 1, 2]}}', "video '1' should be"),
    ('{"1": {"subset": "test", "action": [true, 1, 2]}}', "video '1' should be"),
    ('{"1": {"subset": ["test"], "action": [0, 1, 2]}}', "video '1' should be"),
])  # fmt: skip
def test_json_that_is_not_a_split_is_a_clear_error(tmp_path: Path, content: str, message: str) -> None:
    path = create_files(tmp_path, "videos/1.mp4") / "split.json"
    path.write_text(content)
    with pytest.raises(VideoError) as raised:
        read_dataset(path, labels=LABELS)
    assert message in str(raised.value)


@pytest.mark.parametrize(("files", "arguments", "error", "message"), [
    (["a.mp4"], {}, VideoError, "needs one subfolder of clips per gloss"),
    (["book/notes.txt"], {}, VideoError, "needs one subfolder of clips per gloss"),
    (["zebra/a.mp4"], {"labels": LABELS}, LabelsError, "from another vocabulary"),
    (["book/a.mp4"], {"subset": "test"}, VideoError, "--subset is only for data sets"),
    (["book/a.mp4"], {"videos": Path("x")}, VideoError, "--videos is only for data sets"),
])  # fmt: skip
def test_unusable_folder_is_a_clear_error(
    tmp_path: Path, files: list[str], arguments: dict[str, object], error: type[AslTritonError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_dataset(create_files(tmp_path, *files), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({}, LabelsError, "numbers its classes: give their glosses"),
    ({"labels": LABELS[:1]}, LabelsError, "has 2 in class 1, but there are labels for only 1"),
    ({"labels": LABELS, "subset": "dev"}, VideoError, r"no video in the subset 'dev': it has test \(2\)"),
    ({"labels": LABELS, "videos": Path("nowhere")}, VideoError, "No such file or directory. Name their folder"),
    ({"labels": LABELS}, VideoError, r"none of the 2 videos .* \(such as 1.mp4\): name their folder"),
])  # fmt: skip
def test_unusable_split_is_a_clear_error(
    tmp_path: Path, arguments: dict[str, object], error: type[AslTritonError], message: str
) -> None:
    create_files(tmp_path / "videos", "other.mp4")
    split = write_split(tmp_path / "split.json", **{"1": 0, "2": 1})
    with pytest.raises(error, match=message):
        read_dataset(split, **arguments)  # type: ignore[arg-type]


def test_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="name a folder with one subfolder per gloss, or a data set's file"):
        read_dataset(tmp_path / "nowhere")
