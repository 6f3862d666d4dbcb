"""Dictionaries of taught signs and their files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from asl_triton.errors import DictionaryError
from asl_triton.presets import PRESETS
from asl_triton.teaching.dictionary import METADATA, VECTORS, SignDictionary, TaughtModel
from tests.client.teaching.taught import MODEL, show, teach


def test_dictionary_round_trips_through_its_file(tmp_path: Path) -> None:
    taught = teach(3, 2)
    taught.save(tmp_path / "signs.safetensors")
    loaded = SignDictionary.load(tmp_path / "signs.safetensors")
    assert loaded.glosses == ("sign0", "sign1", "sign2") and loaded.model == MODEL
    assert [(e.gloss, e.source, e.added) for e in loaded.examples] == [
        (e.gloss, e.source, e.added) for e in taught.examples
    ]
    np.testing.assert_allclose(loaded.vectors(), taught.vectors(), atol=1e-3)
    assert loaded.hash() == SignDictionary.load(tmp_path / "signs.safetensors").hash()


def test_empty_dictionary_can_be_saved_but_has_no_classifier(tmp_path: Path) -> None:
    SignDictionary(MODEL).save(tmp_path / "signs.safetensors")
    loaded = SignDictionary.load(tmp_path / "signs.safetensors")
    assert len(loaded) == 0
    with pytest.raises(DictionaryError, match="no signs yet"):
        loaded.classifier()
    loaded.add("coffee", show(0, 0))
    assert loaded.glosses == ("coffee",)


def test_duplicate_clip_is_rejected() -> None:
    taught = teach(2, 2)
    with pytest.raises(DictionaryError, match=r"again.mp4 is an example of 'sign0' already: record the sign again"):
        taught.add("sign0", show(0, 1), source="again.mp4")
    with pytest.raises(DictionaryError, match=r"already, so it cannot be one of 'sign1': remove it there first"):
        taught.add("sign1", show(0, 1), source="again.mp4")
    assert len(taught.examples) == 4


@pytest.mark.parametrize("gloss", ["", "  ", "a\nb", "\x1b[31mred", "x" * 101, "\u202eevil"])
def test_hostile_names_are_rejected(gloss: str) -> None:
    with pytest.raises(DictionaryError, match="is not a valid name for a sign"):
        SignDictionary(MODEL).add(gloss, show(0, 0))


def test_signs_and_examples_are_removed() -> None:
    taught = teach(2, 3)
    assert taught.remove("sign0", "sign0/1.mp4") == 1 and len(taught.examples) == 5
    assert taught.remove("sign0") == 2 and taught.glosses == ("sign1",)
    taught.add("sign0", show(0, 0))
    assert taught.glosses == ("sign1", "sign0") and len(taught.vectors()) == 4
    with pytest.raises(DictionaryError, match=r"no sign 'nope'. It has sign1, sign0"):
        taught.remove("nope")
    with pytest.raises(DictionaryError, match=r"no example 'nope.mp4' of 'sign1'"):
        taught.remove("sign1", "nope.mp4")


def test_dictionaries_are_merged() -> None:
    one, other = teach(2, 2), teach(3, 3)
    assert one.merge(other) == 5 and len(one.examples) == 9
    assert one.merge(other) == 0
    contradicting = SignDictionary(MODEL)
    contradicting.add("another", show(0, 0))
    with pytest.raises(DictionaryError, match="is an example of 'sign0' already"):
        one.merge(contradicting)


@pytest.mark.parametrize(("model", "says"), [
    (TaughtModel("b" * 64, "fp32", PRESETS["wlasl"].to_json()), "another checkpoint"),
    (TaughtModel("a" * 64, "bf16", PRESETS["wlasl"].to_json()), "another precision"),
    (TaughtModel("a" * 64, "fp32", PRESETS["bsl1k"].to_json()), "another preset"),
])  # fmt: skip
def test_signs_of_another_model_are_rejected(model: TaughtModel, says: str) -> None:
    with pytest.raises(DictionaryError, match=says):
        teach(1, 1).merge(SignDictionary(model))


def test_embedding_of_another_model_is_rejected() -> None:
    taught = teach(1, 2)
    narrow = show(5, 0)
    with pytest.raises(DictionaryError, match="not one of this model's"):
        taught.add("sign9", type(narrow)(narrow.vector[:-1], narrow.energy))


def damage_metadata(path: Path, **changes: object) -> None:
    """Rewrite a dictionary file with changed metadata."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA]) | changes
    safetensors.numpy.save_file(safetensors.numpy.load(content), path, {METADATA: json.dumps(metadata)})


@pytest.mark.parametrize("changes", [
    {"examples": []},
    {"examples": "none"},
    {"examples": [{"gloss": "a"}] * 4},
    {"examples": [{"gloss": "\x1b[2J", "source": "", "added": ""}] * 4},
    {"model": {"preset": "{}"}},
    {"model": None},
    {"format": 2},
])  # fmt: skip
def test_damaged_metadata_is_rejected(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "signs.safetensors"
    teach(2, 2).save(path)
    damage_metadata(path, **changes)
    with pytest.raises(DictionaryError):
        SignDictionary.load(path)


@pytest.mark.parametrize("content", [b"", b"no dictionary", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"])
def test_invalid_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signs.safetensors"
    path.write_bytes(content)
    with pytest.raises(DictionaryError, match="is not a dictionary of signs, or is damaged"):
        SignDictionary.load(path)


@pytest.mark.parametrize("damage", [
    lambda vectors: vectors * np.float32(np.inf),
    lambda vectors: vectors * 0,
    lambda vectors: vectors[0],
    lambda vectors: vectors[:, None],
    lambda vectors: vectors[:-1],
])  # fmt: skip
def test_damaged_embeddings_are_rejected(damage: Callable[[np.ndarray], np.ndarray]) -> None:
    content = teach(2, 2).to_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors = safetensors.numpy.load(content)
    with np.errstate(invalid="ignore"):
        tensors[VECTORS] = damage(tensors[VECTORS])
    with pytest.raises(DictionaryError, match=r"^mine is not a dictionary of signs, or is damaged"):
        SignDictionary.from_bytes(safetensors.numpy.save(tensors, metadata), "mine")


def test_deeply_nested_metadata_is_rejected() -> None:
    tensors = safetensors.numpy.load(teach(1, 1).to_bytes())
    content = safetensors.numpy.save(tensors, {METADATA: "[" * 100_000})
    with pytest.raises(DictionaryError, match="is not a dictionary of signs, or is damaged"):
        SignDictionary.from_bytes(content, "mine")


def test_changing_a_copy_keeps_the_original() -> None:
    taught = teach(2, 2)
    copied = taught.copy()
    copied.add("sign9", show(9, 0))
    copied.remove_example(copied.examples[0])
    assert len(taught.examples) == 4 and "sign9" not in taught
    assert [example.source for example in copied.examples] == ["sign0/1.mp4", "sign1/0.mp4", "sign1/1.mp4", ""]
    np.testing.assert_array_equal(copied.vectors()[:3], taught.vectors()[1:])
    with pytest.raises(DictionaryError, match=r"has no example 'sign0/0\.mp4' of 'sign0'"):
        copied.remove_example(taught.examples[0])


def test_truncated_file_is_rejected_at_any_size(tmp_path: Path) -> None:
    path = tmp_path / "signs.safetensors"
    teach(2, 2).save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(DictionaryError):
            SignDictionary.load(path)


def test_unreadable_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=r"cannot read the dictionary .*: No such file"):
        SignDictionary.load(tmp_path / "nope.safetensors")
    with pytest.raises(DictionaryError, match="Is a directory"):
        SignDictionary.load(tmp_path)
