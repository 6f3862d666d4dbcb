"""Writing and reading model cards, and rejecting invalid ones."""

from pathlib import Path

import pytest

from asl_triton.errors import ContractError
from asl_triton.models.card import EMPTY_CARD, MAX_CARD_BYTES, ModelCard

CARDS = [
    EMPTY_CARD,
    ModelCard(purpose="3 signs, \N{LEFT DOUBLE QUOTATION MARK}café\N{RIGHT DOUBLE QUOTATION MARK}"),
    ModelCard(purpose="p", caveat="c", min_confidence=0.07),
    ModelCard(min_confidence=0.0),
]


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_card_round_trips_through_json_and_parameters(card: ModelCard, tmp_path: Path) -> None:
    assert ModelCard.from_json(card.to_json()) == card
    assert ModelCard.from_parameters({"asl_triton.precision": "fp32", **card.to_parameters()}) == card
    (tmp_path / "card.json").write_text(card.to_json(), encoding="utf-8")
    assert ModelCard.read(tmp_path / "card.json") == card


def test_empty_card_adds_no_parameter() -> None:
    assert EMPTY_CARD.to_parameters() == {}
    assert (EMPTY_CARD.warnings, EMPTY_CARD.describe()) == ((), "")


def test_missing_file_is_an_empty_card(tmp_path: Path) -> None:
    assert ModelCard.read(tmp_path / "card.json") == EMPTY_CARD


def test_texts_become_one_line_and_thresholds_whole_percents() -> None:
    card = ModelCard(purpose=" twenty\n signs ", min_confidence=0.4249)
    assert (card.purpose, card.min_confidence) == ("twenty signs", 0.42)
    assert card.describe() == "twenty signs; answers below 42% are unsure"


@pytest.mark.parametrize(("text", "says"), [
    ("[", "this is not JSON"),
    ("[]", "must be a JSON object of purpose, caveat, min_confidence"),
    ('{"porpoise": ""}', "must be a JSON object of purpose"),
    ('{"purpose": 3}', "purpose must be a text"),
    ('{"caveat": "%s"}' % ("x" * 501), "caveat must be a text of at most 500"),
    ('{"min_confidence": "high"}', "min_confidence is 'high': it must be a number from 0 to 1"),
    ('{"min_confidence": 42}', "min_confidence is 42"),
    ('{"min_confidence": NaN}', "min_confidence is nan"),
    ('{"min_confidence": true}', "min_confidence is True"),
    (" " * (MAX_CARD_BYTES + 1), "larger than 100 kB"),
], ids=lambda value: value[:20])  # fmt: skip
def test_invalid_card_is_rejected_with_its_path(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(ContractError, match=says) as raised:
        ModelCard.read(path)
    assert str(path) in str(raised.value)


def test_unreadable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ContractError, match="cannot read the model card"):
        ModelCard.read(tmp_path / "folder")
    (tmp_path / "latin.json").write_bytes(b'{"purpose": "caf\xe9"}')
    with pytest.raises(ContractError, match="cannot read the model card"):
        ModelCard.read(tmp_path / "latin.json")
