import dataclasses
import hashlib
import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from asl_triton.errors import AslTritonError, CheckpointError, LabelsError
from asl_triton.models.card import EMPTY_CARD
from asl_triton.presets import PRESETS
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import load_checkpoint, read_labels_for
from asl_triton_export.pretrained import download as download_module
from asl_triton_export.pretrained import zip_extract as archive_module
from asl_triton_export.pretrained.catalog import PUBLISHED, Weights
from asl_triton_export.pretrained.fetch import BUNDLE_FILES, fetch
from tests.export.file_server import FileServer, Served, serve_files
from tests.export.published_weights import (
    GLOSSES,
    MEMBERS,
    build_checkpoint,
    build_citizen_csv,
    build_info_pickle,
    build_zip,
    publish,
)

Catalog = dict[str, Weights]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download_module, "DRIVE_RETRIES", 0)
    with serve_files() as state:
        yield state


@pytest.fixture
def catalog(server: FileServer) -> Catalog:
    return publish(server)


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


CITIZEN_GLOSSES = ("BEFORE", "BOOK", "CHAIR", "COMPUTER", "DRINK", "GO")


@pytest.mark.parametrize(("name", "preset", "glosses"), [
    ("bsl1k", "bsl1k-person", GLOSSES[:4]),
    ("wlasl5", "wlasl", GLOSSES[:5]),
    ("wlasl3", "wlasl", GLOSSES[:3]),
    ("citizen", "asl-citizen", CITIZEN_GLOSSES),
    ("msasl", "bsl1k-person", ("hello", "nice", "teacher")),
])  # fmt: skip
def test_fetched_bundle_can_be_exported(
    name: str, preset: str, glosses: tuple[str, ...], catalog: Catalog, tmp_path: Path
) -> None:
    fetched = fetch(name, tmp_path / name, catalog=catalog)
    assert fetched.is_new
    assert list_names(fetched.folder) == set(BUNDLE_FILES)
    bundle = open_bundle(fetched.folder)
    assert bundle.preset == PRESETS[preset]
    assert bundle.labels is not None
    checkpoint = load_checkpoint(bundle.weights)
    assert read_labels_for(checkpoint, bundle.labels) == glosses
    assert list_names(tmp_path) == {name, ".downloads"}
    purpose = bundle.card.purpose
    for part in (f"{len(glosses)} signs of", catalog[name].language, catalog[name].test_set, catalog[name].good_for):
        assert part in purpose
    assert (bundle.card.caveat, bundle.card.min_confidence) == ("", None)
    readme = (fetched.folder / "README.txt").read_text()
    weights = catalog[name]
    for part in (weights.language, weights.test_set, weights.good_for, weights.glosses.address):
        assert part in readme


def test_only_the_member_of_a_large_zip_is_downloaded(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    """The videos are zeros, so the zip is padded with random bytes, which do not compress."""
    padding = np.random.default_rng(0).bytes(2**20)
    zipped = build_zip({"ASL_Citizen/a.mp4": padding, "ASL_Citizen/splits/train.csv": build_citizen_csv()})
    server.files["/citizen"] = Served(zipped)
    fetch("citizen", tmp_path / "c", catalog=catalog)
    head, *parts = server.get_ranges("/citizen")
    assert head is None and all(parts)
    sizes = [int(end) - int(start) + 1 for start, end in (part.removeprefix("bytes=").split("-") for part in parts)]
    assert sum(sizes) < 200_000 < len(zipped)


def test_member_is_read_beyond_four_gigabytes(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    """zip64: the member comes after a hole of five gigabytes in the file."""
    path = tmp_path / "large.zip"
    with path.open("wb") as file:
        file.seek(5 * 2**30)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ASL_Citizen/splits/train.csv", build_citizen_csv())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert b"PK\x06\x07" in content[-100:]  # the zip64 locator
        server.files["/citizen"] = Served(content)
        folder = fetch("citizen", tmp_path / "c", catalog=catalog).folder
        assert (folder / "labels.txt").read_text().split() == list(CITIZEN_GLOSSES)


def test_redirects_lead_to_the_zip(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    server.files["/moved"] = server.files["/citizen"]
    server.files["/citizen"] = Served(b"", status=302, location=f"{server.url}/moved")
    assert fetch("citizen", tmp_path / "c", catalog=catalog).is_new
    assert server.get_ranges("/moved")


UNREADABLE: dict[str, tuple[Served, str]] = {
    "ignores ranges": (Served(build_zip({"a": b"a"}), takes_ranges=False), "the server does not support HTTP ranges"),
    "no such member": (Served(build_zip({"ASL_Citizen/videos/a.mp4": b"a"})), "has no files called .* among its 1"),
    "not a zip": (Served(b"Rar!" * 1000), "it is not a readable zip"),
    "gone": (Served(b"", status=404), "no longer exists"),
    "refused": (Served(b"", status=403), "was refused"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_zip_that_cannot_be_read_in_parts_is_reported(
    case: str, catalog: Catalog, server: FileServer, tmp_path: Path
) -> None:
    original = server.files["/citizen"]
    served, says = UNREADABLE[case]
    server.files["/citizen"] = served
    with pytest.raises(AslTritonError, match=says) as raised:
        fetch("citizen", tmp_path / "c", catalog=catalog)
    message = str(raised.value)
    assert "unpack ASL_Citizen/splits/train.csv" in message and str(tmp_path / ".downloads" / "train.csv") in message
    server.files["/citizen"] = original
    assert fetch("citizen", tmp_path / "c", catalog=catalog).is_new


def test_connection_lost_within_the_zip_is_reported(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    server.files["/citizen"].cuts = [10]
    with pytest.raises(AslTritonError, match="cannot download"):  # nothing of the member was received
        fetch("citizen", tmp_path / "c", catalog=catalog)
    assert list_names(tmp_path) == {".downloads"}


def test_custom_glosses_replace_the_published_ones(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    labels = tmp_path / "mine.txt"
    labels.write_text("one\ntwo\nthree\n")
    server.files.pop("/msasl")
    folder = fetch("msasl", tmp_path / "m", labels=labels, catalog=catalog).folder
    assert (folder / "labels.txt").read_text().split() == ["one", "two", "three"]
    assert "mine.txt, your own list" in (folder / "README.txt").read_text()
    assert labels.exists() and server.get_ranges("/msasl") == []


def test_custom_glosses_must_match_the_number_of_classes(catalog: Catalog, tmp_path: Path) -> None:
    labels = tmp_path / "mine.txt"
    labels.write_text("one\ntwo\n")
    with pytest.raises(LabelsError):
        fetch("msasl", tmp_path / "m", labels=labels, catalog=catalog)
    assert labels.read_text() == "one\ntwo\n"


@pytest.mark.parametrize(("part", "path"), [("checkpoint", "/citizen-weights"), ("glosses", "/citizen")])
def test_download_with_another_checksum_is_refused(
    part: str, path: str, catalog: Catalog, server: FileServer, tmp_path: Path
) -> None:
    original = catalog["citizen"]
    remote = dataclasses.replace(getattr(original, part), sha256="00" * 32)
    catalog["citizen"] = dataclasses.replace(original, **{part: remote})
    with pytest.raises(CheckpointError, match="its SHA-256 is"):
        fetch("citizen", tmp_path / "c", catalog=catalog)
    filename = {"checkpoint": "citizen-weights.zip", "glosses": "train.csv"}[part]
    good = hashlib.sha256((tmp_path / ".downloads" / f"{filename}.refused").read_bytes()).hexdigest()
    catalog["citizen"] = dataclasses.replace(original, **{part: dataclasses.replace(remote, sha256=good)})
    assert fetch("citizen", tmp_path / "c", catalog=catalog).is_new


def test_readme_states_source_license_and_accuracy(catalog: Catalog, tmp_path: Path) -> None:
    folder = fetch("wlasl5", tmp_path / "w", catalog=catalog).folder
    readme = (folder / "README.txt").read_text()
    url = catalog["wlasl5"].checkpoint.url
    for part in (url, "C-UDA", "academic", "65.89", "84.11", "89.92", load_checkpoint(folder / "weights.pt").sha256):
        assert part in readme
    assert "top-10" not in (fetch("bsl1k", tmp_path / "b", catalog=catalog).folder / "README.txt").read_text()


def test_default_folder_is_named_after_the_weights(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetch("bsl1k", catalog=catalog).folder == Path("weights/bsl1k")
    assert (tmp_path / "weights" / "bsl1k" / "weights.pt").exists()


def test_second_wlasl_weights_reuse_the_archive(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    first = fetch("wlasl5", tmp_path / "wlasl5", catalog=catalog)
    assert first.archive == tmp_path / ".downloads" / "archive.zip"
    second = fetch("wlasl3", tmp_path / "wlasl3", catalog=catalog)
    assert second.archive == first.archive
    assert first.archive.exists()
    assert len(server.get_ranges("/archive")) == len(server.get_ranges("/classes")) == 1


def test_download_of_a_single_checkpoint_is_not_kept_twice(catalog: Catalog, tmp_path: Path) -> None:
    assert fetch("bsl1k", tmp_path / "bsl1k", catalog=catalog).archive is None
    assert list_names(tmp_path / ".downloads") == set()


def test_existing_bundle_is_left_alone(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    fetch("bsl1k", tmp_path / "b", catalog=catalog)
    server.requests.clear()
    again = fetch("bsl1k", tmp_path / "b", catalog=catalog)
    assert not again.is_new
    assert server.requests == []


@pytest.mark.parametrize("name", ["bsl1k", "wlasl5"])
def test_force_downloads_and_replaces(name: str, catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    fetch(name, tmp_path / "b", catalog=catalog)
    before = (tmp_path / "b" / "weights.pt").read_bytes()
    publish(server)  # other random weights
    fetch(name, tmp_path / "b", force=True, catalog=catalog)
    assert (tmp_path / "b" / "weights.pt").read_bytes() != before
    assert list_names(tmp_path) == {"b", ".downloads"}


def test_failed_force_leaves_the_old_bundle(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    fetch("bsl1k", tmp_path / "b", catalog=catalog)
    server.files["/model"] = Served(build_checkpoint(9))
    with pytest.raises(CheckpointError):
        fetch("bsl1k", tmp_path / "b", force=True, catalog=catalog)
    assert load_checkpoint(tmp_path / "b" / "weights.pt").num_classes == 4
    assert list_names(tmp_path) == {"b", ".downloads"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("file", ["thesis.tex", "README.txt", "weights.pt"])
def test_folder_with_other_files_is_never_replaced(file: str, force: bool, catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file).write_text("years of work")
    with pytest.raises(AslTritonError, match=r"was not fetched by asl-triton.*--to"):
        fetch("bsl1k", tmp_path / "mine", force=force, catalog=catalog)
    assert list_names(tmp_path / "mine") == {file}


def test_file_in_the_way_is_reported(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("a file")
    with pytest.raises(AslTritonError, match="was not fetched by asl-triton"):
        fetch("bsl1k", tmp_path / "b", force=True, catalog=catalog)


def test_other_bundle_is_replaced_only_with_force(catalog: Catalog, tmp_path: Path) -> None:
    fetch("wlasl5", tmp_path / "b", catalog=catalog)
    with pytest.raises(AslTritonError, match=r"weights \('wlasl5.*--force"):
        fetch("wlasl3", tmp_path / "b", catalog=catalog)
    fetch("wlasl3", tmp_path / "b", force=True, catalog=catalog)
    assert load_checkpoint(tmp_path / "b" / "weights.pt").num_classes == 3


def test_bundle_of_an_earlier_version_has_no_card_and_is_left_alone(catalog: Catalog, tmp_path: Path) -> None:
    folder = fetch("bsl1k", tmp_path / "b", catalog=catalog).folder
    (folder / "card.json").unlink()
    assert not fetch("bsl1k", tmp_path / "b", catalog=catalog).is_new
    assert open_bundle(folder).card == EMPTY_CARD
    assert fetch("bsl1k", tmp_path / "b", catalog=catalog, force=True).is_new
    assert open_bundle(folder).card.purpose


def test_published_weights_have_no_warnings() -> None:
    for weights in PUBLISHED.values():
        assert weights.card.warnings == ()
        assert f"{weights.num_classes:,} signs of {weights.language}" in weights.card.purpose
        assert f"{weights.accuracy.top1:.2f} %" in weights.card.purpose


def test_empty_folder_is_filled(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert fetch("bsl1k", tmp_path / "b", catalog=catalog).is_new


def test_manually_downloaded_file_is_used(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    downloads = tmp_path / ".downloads"
    downloads.mkdir()
    (downloads / "archive.zip").write_bytes(server.files["/archive"].content)
    server.files["/archive"] = Served(b"", status=404)
    assert fetch("wlasl5", tmp_path / "wlasl5", catalog=catalog).is_new
    assert server.get_ranges("/archive") == []


def test_folders_in_the_archive_are_ignored(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    server.files["/archive"] = Served(build_zip({f"../../../{MEMBERS[5]}": build_checkpoint(5)}))
    folder = fetch("wlasl5", tmp_path / "deep" / "wlasl5", catalog=catalog).folder
    assert list_names(folder) == set(BUNDLE_FILES)
    assert list_names(tmp_path) == {"deep"}


WRONG: dict[str, tuple[str, str, bytes, str]] = {
    "other class count": ("bsl1k", "/model", build_checkpoint(9), "has 9 classes instead of 4"),
    "not a checkpoint": ("bsl1k", "/model", b"{}" * 200, "not a PyTorch checkpoint"),
    "too few words": ("bsl1k", "/info", build_info_pickle(["book"]), "has 1 glosses, but 4"),
    "a word twice": ("bsl1k", "/info", build_info_pickle(["book", "go", "book", "who"]), "lists 'book' 2 times"),
    "no words": ("bsl1k", "/info", build_info_pickle(None), "no list of glosses"),
    "code in the pickle": ("bsl1k", "/info", b"cos\nsystem\n(S'true'\ntR.", r"refers to (os|posix)\.system"),
    "not the CSV of ASL Citizen": (
        "citizen",
        "/citizen",
        build_zip({"ASL_Citizen/splits/train.csv": b"a,b\n1,2\n"}),
        "not a",
    ),
    "not JSON": ("msasl", "/msasl", build_zip({"MSASL_classes.json": b"["}), "is not JSON"),
    "not a list": ("msasl", "/msasl", build_zip({"MSASL_classes.json": b'{"a": 1}'}), "is not a JSON list of glosses"),
    "short class list": ("wlasl5", "/classes", b"0\tbook\n1\tdrink\n", "has 2 glosses, but 5"),
    "not a zip": ("wlasl5", "/archive", b"Rar!" * 100, "not a readable zip"),
    "no such member": ("wlasl5", "/archive", build_zip({"a.pt": b"a"}), r"has 0 files like .* \(it has a\.pt\)"),
    "two members": (
        "wlasl5",
        "/archive",
        build_zip({MEMBERS[5]: b"a", f"old/{MEMBERS[5]}": b"b"}),
        "has 2 files like",
    ),
    "member of other class count": (
        "wlasl5",
        "/archive",
        build_zip({MEMBERS[5]: build_checkpoint(6)}),
        "has 6 classes",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content_is_refused_and_downloaded_again(
    case: str, catalog: Catalog, server: FileServer, tmp_path: Path
) -> None:
    name, path, content, words = WRONG[case]
    original = server.files[path]
    server.files[path] = Served(content)
    with pytest.raises(CheckpointError, match=words) as raised:
        fetch(name, tmp_path / "b", catalog=catalog)
    assert f"{server.url}{path}" in str(raised.value)
    assert catalog[name].homepage in str(raised.value)
    assert list_names(tmp_path) == {".downloads"}
    server.files[path] = original
    assert fetch(name, tmp_path / "b", catalog=catalog).is_new


def test_weights_with_another_checksum_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    catalog["wlasl5"] = dataclasses.replace(catalog["wlasl5"], sha256="00" * 32)
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch("wlasl5", tmp_path / "b", catalog=catalog)


def test_archive_mixed_from_two_versions_is_refused(catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    content = server.files["/archive"].content
    server.files["/archive"] = Served(content[:40_000] + bytes(len(content) - 50_000) + content[-10_000:])
    with pytest.raises(CheckpointError):
        fetch("wlasl5", tmp_path / "b", catalog=catalog)
    assert list_names(tmp_path) == {".downloads"}


def test_zip_bomb_is_not_unpacked(
    catalog: Catalog, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "MAX_MEMBER_BYTES", 2**20)
    server.files["/archive"] = Served(build_zip({MEMBERS[5]: bytes(2**22)}))
    with pytest.raises(CheckpointError, match="unpacks to more than 1 MiB"):
        fetch("wlasl5", tmp_path / "b", catalog=catalog)


@pytest.mark.parametrize("path", ["/model", "/info"])
def test_failed_download_leaves_no_bundle(path: str, catalog: Catalog, server: FileServer, tmp_path: Path) -> None:
    original = server.files.pop(path)
    with pytest.raises(AslTritonError, match="no longer exists"):
        fetch("bsl1k", tmp_path / "b", catalog=catalog)
    assert list_names(tmp_path) == {".downloads"}
    server.files[path] = original
    assert fetch("bsl1k", tmp_path / "b", catalog=catalog).is_new


def test_unknown_name_lists_the_choices(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(AslTritonError, match=r"wlasl9.*choose one of bsl1k, wlasl3, wlasl5, citizen, msasl"):
        fetch("wlasl9", tmp_path / "b", catalog=catalog)


def test_unwritable_folder_is_reported(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AslTritonError, match=r"cannot write to .*--to"):
        fetch("bsl1k", tmp_path / "file" / "b", catalog=catalog)


def test_steps_and_bytes_are_reported(catalog: Catalog, tmp_path: Path) -> None:
    reported: list[str] = []
    weights = catalog["bsl1k"]
    sized = dataclasses.replace(weights, checkpoint=dataclasses.replace(weights.checkpoint, num_bytes=57_000_000))
    catalog = {"bsl1k": sized}
    fetch(
        "bsl1k",
        tmp_path / "b",
        catalog=catalog,
        on_bytes=lambda name, *_: reported.append(name),
        on_step=reported.append,
    )
    assert list(dict.fromkeys(reported[1:])) == ["model.pth.tar", "info.pkl", "Checking bsl1k"]
    assert reported[0] == f"bsl1k: 4 glosses, 57 MB. {weights.terms}"
