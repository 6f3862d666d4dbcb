"""The signer's box on the page, and the camera guide."""

from typing import get_args

import pytest

from asl_triton.errors import AslTritonError
from asl_triton.presets import PRESETS
from asl_triton.results import SignerBox
from asl_triton.signer.guide import Advice, AdviceFilter
from asl_triton_ui.guide import WORDS, guide_recording, render_guide
from asl_triton_ui.signer_box import WHOLE, parse_box, render_seen


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((None,) * 4, (None, True)),
        ((0, 0, 0, 0), (None, True)),  # as Gradio sends empty fields
        (WHOLE, (None, False)),
        ((25, 5, 75, 100), (SignerBox(0.25, 0.05, 0.75, 1), False)),
    ],
)
def test_fields_are_parsed_into_a_box(sides: tuple[float | None, ...], expected: tuple[SignerBox | None, bool]) -> None:
    assert parse_box(sides) == expected


@pytest.mark.parametrize("sides", [(20, None, 60, 80), (60, 20, 40, 80), (20, 20, 21, 80)])
def test_invalid_fields_are_reported(sides: tuple[float | None, ...]) -> None:
    with pytest.raises(AslTritonError, match=r"four sides|is empty or nearly so"):
        parse_box(sides)


def test_page_shows_what_the_network_saw() -> None:
    face = SignerBox(0.1, 0.2, 0.5, 1, "face", 0.667)
    shown = render_seen(face, PRESETS["wlasl"])
    assert "found by the face detector, 67% sure" in shown and 'data-seen="10.00 20.00 50.00 100.00"' in shown
    whole = render_seen(None, PRESETS["bsl1k-person"])
    assert "The network saw the whole frame." in whole and "draw the box" in whole and 'data-seen=""' in whole
    assert "draw the box" not in render_seen(None, PRESETS["wlasl"])


def test_every_advice_has_its_own_word_and_sign() -> None:
    assert set(WORDS) == set(get_args(Advice))
    assert len({sign for sign, _, _ in WORDS.values()}) == len({word for _, word, _ in WORDS.values()}) == len(WORDS)
    assert "Head to waist in the outline" in render_guide(None)


@pytest.mark.parametrize("picture", [None, "", "no picture", "data:image/png;base64,bm90IGEgcGljdHVyZQ=="])
def test_invalid_picture_gives_no_advice(picture: str | None) -> None:
    assert guide_recording(picture, AdviceFilter())[0] == ""
