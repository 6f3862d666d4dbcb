"""Boxes of signers, as fractions of the frame, and invalid boxes."""

from dataclasses import replace

import pytest

from asl_triton.errors import AslTritonError
from asl_triton.results import ShotBox, SignerBox, Timeline, to_json_values


def test_box_is_read_from_text_and_pixels() -> None:
    assert SignerBox.parse("0.25, 0.05,0.75,1") == SignerBox(0.25, 0.05, 0.75, 1.0)
    box = SignerBox.from_pixels((234, 17, 524, 414), 736, 414, source="dataset")
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((234 / 736, 17 / 414, 524 / 736, 1.0))
    assert (box.source, box.confidence) == ("dataset", 1.0)


def test_box_is_clipped_to_the_frame() -> None:
    box = SignerBox(-0.2, 0.1, 0.5, 1.3)
    assert (box.x0, box.y0, box.x1, box.y1) == (0.0, 0.1, 0.5, 1.0)


@pytest.mark.parametrize(("values", "says"), [
    ((234, 17, 524, 414), "not in fractions of the frame"),
    ((0, 0, float("nan"), 1), "not in fractions of the frame"),
    ((0, 0, float("inf"), 1), "not in fractions of the frame"),
    ((0.7, 0, 0.3, 1), "is empty or nearly so"),
    ((0.2, 0.9, 0.8, 0.1), "is empty or nearly so"),
    ((0.5, 0.5, 0.5005, 0.501), "is empty or nearly so"),
    ((1.2, 0, 1.8, 1), "is empty or nearly so"),
])  # fmt: skip
def test_invalid_box_is_rejected(values: tuple[float, ...], says: str) -> None:
    with pytest.raises(AslTritonError, match=says):
        SignerBox(*values)


@pytest.mark.parametrize("text", ["", "auto", "1,2,3", "0,0,1,1,1", "a,b,c,d"])
def test_invalid_text_is_rejected(text: str) -> None:
    with pytest.raises(AslTritonError, match="give x0,y0,x1,y1 as fractions"):
        SignerBox.parse(text)


def test_timeline_json_has_signers_only_if_there_are_boxes() -> None:
    plain = Timeline("a.mp4", "signs", (), 9, 0.4, 1, 0.1, 0.2)
    assert set(to_json_values(plain)) == {
        "video", "model", "segments", "num_frames", "duration_s", "num_windows", "decode_s", "wait_s", "warnings",
    }  # fmt: skip
    shots = (ShotBox(0.0, SignerBox(0.1, 0.2, 0.5, 1)), ShotBox(2.0, None))
    boxed = replace(plain, signers=shots)
    assert to_json_values(boxed)["signers"] == [
        {"start_s": 0.0, "signer": {"box": [0.1, 0.2, 0.5, 1.0], "source": "caller", "confidence": 1.0}},
        {"start_s": 2.0, "signer": None},
    ]
    assert [boxed.find_signer(time_s) for time_s in (-1, 1.9, 2.0)] == [None, shots[0].box, None]
