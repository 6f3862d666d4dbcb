"""Taught signs are limited in size, separate for each visitor, and gone once removed."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from asl_triton.errors import DictionaryError
from asl_triton.models.served import ServedModel
from asl_triton.presets import PRESETS
from asl_triton.teaching.dictionary import SignDictionary, TaughtModel
from asl_triton_ui.options import PageOptions
from asl_triton_ui.state import taught_signs
from asl_triton_ui.state.taught_signs import BOTH, OWN, TAUGHT, TaughtSigns, Visitor, list_removable
from tests.client.teaching.taught import MODEL, show, teach

ADA, BOB = Visitor("10.0.0.1", "ada"), Visitor("10.0.0.2", "bob")
ADDRESS = "gpu1:8001"


def make_served_model(checkpoint: str = "a" * 64) -> ServedModel:
    return ServedModel("signs", "1", PRESETS["wlasl"], ("hello",), "UINT8", "fp32", checkpoint, "tests")


def add(taught: TaughtSigns, visitor: Visitor, sign: int, take: int) -> None:
    taught.add(visitor, f"sign{sign}", show(sign, take), make_served_model(), ADDRESS)


def list_glosses(taught: TaughtSigns, visitor: Visitor) -> tuple[str, ...]:
    dictionary = taught.get(visitor)
    return () if dictionary is None else dictionary.glosses


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "signs.safetensors"
    teach(2, 3).save(path)
    yield path
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".part")] == []


def test_visitors_do_not_see_each_others_signs() -> None:
    taught = TaughtSigns(PageOptions())
    add(taught, ADA, 0, 0)
    assert list_glosses(taught, ADA) == ("sign0",)
    for other in (BOB, Visitor(ADA.who, "another page"), Visitor("another login", ADA.session)):
        assert taught.get(other) is None
        with pytest.raises(DictionaryError, match="no signs are taught here"):
            taught.choose(TAUGHT, other)


def test_dictionary_in_use_does_not_change() -> None:
    taught = TaughtSigns(PageOptions())
    add(taught, ADA, 0, 0)
    before, _ = taught.choose(BOTH, ADA)
    add(taught, ADA, 1, 0)
    taught.remove(ADA, "sign:sign0")
    assert before is not None and before.glosses == ("sign0",)
    assert list_glosses(taught, ADA) == ("sign1",)


def test_choice_decides_which_signs_answer() -> None:
    taught = TaughtSigns(PageOptions())
    assert taught.choose(OWN, ADA) == (None, False)
    add(taught, ADA, 0, 0)
    assert taught.choose(OWN, ADA) == (None, False)
    assert taught.choose(TAUGHT, ADA) == (taught.get(ADA), False)
    assert taught.choose(BOTH, ADA) == (taught.get(ADA), True)


def test_same_clip_and_bad_names_are_reported() -> None:
    taught = TaughtSigns(PageOptions())
    add(taught, ADA, 0, 0)
    with pytest.raises(DictionaryError, match="is an example of 'sign0' already"):
        add(taught, ADA, 0, 0)
    for name in ("", "  ", "a\nb", "x" * 101):
        with pytest.raises(DictionaryError, match="is not a valid name for a sign"):
            taught.add(ADA, name, show(3, 0), make_served_model(), ADDRESS)
    assert list_glosses(taught, ADA) == ("sign0",)


def test_another_checkpoint_is_reported_and_changes_nothing(tmp_path: Path) -> None:
    taught = TaughtSigns(PageOptions())
    add(taught, ADA, 0, 0)
    with pytest.raises(DictionaryError, match=r"another checkpoint \(aaaaaaaaaaaa, not bbbbbbbbbbbb\) than signs"):
        taught.add(ADA, "sign0", show(0, 1), make_served_model("b" * 64), ADDRESS)
    teach(1, 1).save(tmp_path / "mine.safetensors")
    with pytest.raises(DictionaryError, match="another checkpoint"):
        taught.load(BOB, tmp_path / "mine.safetensors", make_served_model("b" * 64), ADDRESS)
    assert list_glosses(taught, ADA) == ("sign0",) and taught.get(BOB) is None
    taught.remove(ADA, "sign:sign0")  # an empty dictionary belongs to no model
    taught.add(ADA, "sign1", show(1, 0), make_served_model("b" * 64), ADDRESS)
    assert list_glosses(taught, ADA) == ("sign1",)


def test_everything_listed_can_be_removed() -> None:
    taught = TaughtSigns(PageOptions())
    for take in range(3):
        add(taught, ADA, 0, take)
    add(taught, ADA, 1, 0)
    labels = [label.replace("\xa0", " ") for label, _ in list_removable(taught.get(ADA), with_everything=True)]
    assert labels == [
        "All signs",
        "sign0: 3 examples",
        "sign0, example 1",
        "sign0, example 2",
        "sign0, example 3",
        "sign1: 1 example",
    ]
    names = [name for _, name in list_removable(taught.get(ADA), with_everything=True)]
    assert taught.remove(ADA, names[3]) == "sign0, example 2"
    dictionary = taught.get(ADA)
    assert dictionary is not None
    assert [e.source for e in dictionary.examples] == ["sign0, example 1", "sign0, example 3", "sign1, example 1"]
    assert len(dictionary.vectors()) == 3
    with pytest.raises(DictionaryError, match="was already removed"):
        taught.remove(ADA, names[3])
    add(taught, ADA, 0, 5)  # takes the next free number
    dictionary = taught.get(ADA)
    assert dictionary is not None and dictionary.examples[-1].source == "sign0, example 4"
    assert taught.remove(ADA, names[1]) == "sign0"
    assert taught.remove(ADA, names[0]) == "all signs"
    assert taught.get(ADA) is None
    with pytest.raises(DictionaryError, match="nothing to remove"):
        taught.remove(ADA, names[0])


def test_downloaded_signs_can_be_loaded_on_another_page(tmp_path: Path) -> None:
    taught, path = TaughtSigns(PageOptions()), tmp_path / "signs.safetensors"
    for take in range(3):
        add(taught, ADA, 0, take)
    dictionary = taught.get(ADA)
    assert dictionary is not None
    path.write_bytes(dictionary.to_bytes())
    assert taught.load(BOB, path, make_served_model(), ADDRESS) == 3
    add(taught, BOB, 1, 0)
    assert taught.load(BOB, path, make_served_model(), ADDRESS) == 0  # they were already there
    assert list_glosses(taught, BOB) == ("sign0", "sign1") and list_glosses(taught, ADA) == ("sign0",)


def test_conflicting_file_changes_nothing(tmp_path: Path) -> None:
    taught, path = TaughtSigns(PageOptions()), tmp_path / "other.safetensors"
    other = SignDictionary(MODEL)
    other.add("new", show(5, 0))
    other.add("coffee", show(0, 0))
    other.save(path)
    add(taught, ADA, 0, 0)
    add(taught, ADA, 1, 0)
    with pytest.raises(DictionaryError, match="already"):
        taught.load(ADA, path, make_served_model(), ADDRESS)
    assert list_glosses(taught, ADA) == ("sign0", "sign1")


def test_hostile_files_are_reported_without_a_path_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, path = TaughtSigns(PageOptions()), tmp_path / "mine.safetensors"
    monkeypatch.setattr(taught_signs, "MAX_FILE_BYTES", 2**20)
    monkeypatch.setattr(taught_signs, "MAX_EXAMPLES", 4)
    whole = teach(1, 1).to_bytes()
    for content, says in (
        (b"", "is not a dictionary of signs, or is damaged"),
        (b"\xff" * 100, "is not a dictionary"),
        (whole[:-3], "is not a dictionary"),
        (whole.replace(b"sign0", b"si\\n0"), "is not a dictionary|is not a valid name for a sign"),
        (b"\0" * (2**20 + 1), "is larger than 1 MiB"),
        (teach(5, 1).to_bytes(), "up to 4 examples, not 5"),
    ):
        path.write_bytes(content)
        with pytest.raises(DictionaryError, match=says) as error:
            taught.load(ADA, path, make_served_model(), ADDRESS)
        assert str(tmp_path) not in str(error.value)
    path.unlink()
    with pytest.raises(DictionaryError, match=r"mine\.safetensors was deleted in the meantime"):
        taught.load(ADA, path, make_served_model(), ADDRESS)
    assert taught.get(ADA) is None


def test_dictionaries_are_limited_per_visitor_and_in_total(monkeypatch: pytest.MonkeyPatch) -> None:
    one = taught_signs.COPIES * teach(1, 1).vectors().nbytes
    taught = TaughtSigns(PageOptions())
    monkeypatch.setattr(taught_signs, "MAX_EXAMPLES", 2)
    add(taught, ADA, 0, 0)
    add(taught, ADA, 0, 1)
    with pytest.raises(DictionaryError, match="up to 2 examples, not 3"):
        add(taught, ADA, 0, 2)
    monkeypatch.setattr(taught_signs, "MAX_WHO_BYTES", 3 * one)
    pages = [Visitor(ADA.who, f"page {number}") for number in range(2)]
    add(taught, pages[0], 0, 0)
    with pytest.raises(DictionaryError, match="on too many open pages"):
        add(taught, pages[1], 0, 0)
    monkeypatch.setattr(taught_signs, "MAX_BYTES", 4 * one)
    add(taught, BOB, 0, 0)
    with pytest.raises(DictionaryError, match="out of room for signs"):
        add(taught, BOB, 0, 1)
    taught.remove(ADA, taught_signs.EVERYTHING)
    add(taught, BOB, 0, 1)  # there is room again


def test_unused_dictionary_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    taught, now_s = TaughtSigns(PageOptions(keep_minutes=50)), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    add(taught, ADA, 0, 0)
    add(taught, BOB, 0, 0)
    now_s += 49 * 60
    assert taught.get(BOB) is not None
    now_s += 2 * 60
    taught.forget_unused()
    assert taught.get(ADA) is None and list_glosses(taught, BOB) == ("sign0",)


def test_shared_signs_are_used_by_all_and_cannot_be_changed(shared: Path) -> None:
    taught, before = TaughtSigns(PageOptions(dictionary=shared)), shared.read_bytes()
    for visitor in (ADA, BOB):
        assert list_glosses(taught, visitor) == ("sign0", "sign1")
        with pytest.raises(DictionaryError, match="visitors of this page cannot change its signs"):
            add(taught, visitor, 2, 0)
        for name in ("sign:sign0", taught_signs.EVERYTHING):
            with pytest.raises(DictionaryError):
                taught.remove(visitor, name)
        with pytest.raises(DictionaryError):
            taught.load(visitor, shared, make_served_model(), ADDRESS)
    assert shared.read_bytes() == before and list_glosses(taught, ADA) == ("sign0", "sign1")


def test_concurrent_teaching_loses_nothing_in_the_shared_file(shared: Path) -> None:
    taught = TaughtSigns(PageOptions(dictionary=shared, visitors_teach=True))

    def teach_ten(visitor: Visitor, first: int) -> None:
        for sign in range(first, first + 10):
            add(taught, visitor, sign, 0)

    threads = [threading.Thread(target=teach_ten, args=(visitor, 10 * n)) for n, visitor in enumerate((ADA, BOB), 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {"sign0", "sign1", *(f"sign{sign}" for sign in range(10, 30))}
    assert set(list_glosses(taught, ADA)) == set(SignDictionary.load(shared).glosses) == expected
    taught.remove(BOB, "sign:sign0")
    assert "sign0" not in SignDictionary.load(shared)
    with pytest.raises(DictionaryError):  # one click must not remove everyone's signs
        taught.remove(BOB, taught_signs.EVERYTHING)


def test_unwritable_shared_file_does_not_change(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = TaughtSigns(PageOptions(dictionary=shared, visitors_teach=True))

    def fail(self: SignDictionary, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(SignDictionary, "save", fail)
        with pytest.raises(Exception, match="No space left on device"):
            add(taught, ADA, 2, 0)
    assert list_glosses(taught, ADA) == SignDictionary.load(shared).glosses == ("sign0", "sign1")


def test_visitor_is_a_login_or_an_address() -> None:
    class Client:
        host = "10.0.0.1"

    request = gr.Request(username=None, session_hash="page")
    request.client = Client()
    assert Visitor.of(request) == Visitor("10.0.0.1", "page")
    request.username = "ada"
    assert Visitor.of(request) == Visitor("ada", "page")


def test_served_model_matches_the_taught_model() -> None:
    assert TaughtModel.of(make_served_model()) == MODEL
