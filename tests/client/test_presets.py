"""The shipped presets, presets as JSON, and invalid presets."""

import dataclasses
import json

import pytest

from asl_triton.errors import ContractError
from asl_triton.presets import PRESETS, Preset


@pytest.mark.parametrize(("name", "fields"), [
    ("wlasl", {"frame_rate": None, "min_side": 226, "square": 256, "square_above": 256, "colour": "BGR",
               "value_range": (-1, 1), "frames": "clip", "step_pooling": "max", "window_pooling": "max",
               "score": "sigmoid"}),
    ("wlasl-test", {"frame_rate": None, "min_side": 226, "square": None, "colour": "BGR", "value_range": (-1, 1),
                    "frames": "clip", "step_pooling": "max", "window_pooling": "max", "score": "sigmoid"}),
    ("bsl1k", {"frame_rate": 25, "min_side": 0, "square": 256, "square_above": 0, "colour": "RGB",
               "value_range": (-0.5, 0.5), "frames": "window", "step_pooling": "mean-positions",
               "window_pooling": "mean", "score": "softmax"}),
    ("asl-inference", {"frame_rate": None, "min_side": 0, "square": 224, "square_above": 0, "colour": "RGB",
                       "value_range": (0, 1), "frames": "clip", "step_pooling": "mean", "window_pooling": "mean",
                       "score": "softmax"}),
    ("bsl1k-16", {"frame_rate": 25, "square": 256, "square_above": 0, "colour": "RGB", "value_range": (-0.5, 0.5),
                  "frames": "window", "framing": "frame", "step_pooling": "mean-positions", "score": "softmax"}),
    ("bsl1k-person", {"frame_rate": 25, "square": 256, "square_above": 0, "colour": "RGB", "value_range": (-0.5, 0.5),
                      "frames": "window", "framing": "signer", "step_pooling": "mean-positions",
                      "window_pooling": "mean", "score": "softmax"}),
    ("asl-citizen", {"frame_rate": None, "min_side": 226, "square": 256, "square_above": 256, "colour": "BGR",
                     "value_range": (-1, 1), "frames": "centered", "step_from": (96, 160), "latest_start": 160,
                     "framing": "frame", "step_pooling": "max-interpolated", "score": "softmax"}),
])  # fmt: skip
def test_shipped_preset_matches_the_training_of_its_checkpoints(name: str, fields: dict[str, object]) -> None:
    preset = dataclasses.asdict(PRESETS[name])
    assert {field: preset[field] for field in fields} == fields
    lengths = ("min_frames", "max_frames", "window_frames", "stride_frames")
    assert [preset[field] for field in lengths] == ([9, 300, 16, 8] if name == "bsl1k-16" else [9, 300, 64, 32])


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_preset_round_trips_through_json(preset: Preset) -> None:
    assert Preset.from_json(preset.to_json()) == preset
    assert set(json.loads(preset.to_json())) >= {field.name for field in dataclasses.fields(Preset)} - ADDED


ADDED = {"framing", "step_from", "latest_start"}


@pytest.mark.parametrize("name", ["wlasl", "wlasl-test", "bsl1k", "asl-inference"])
def test_preset_of_an_earlier_version_keeps_its_json(name: str) -> None:
    """Journals and older clients identify a preset by its JSON."""
    text = PRESETS[name].to_json()
    assert list(json.loads(text)) == [
        "name", "frame_rate", "min_side", "square", "square_above", "colour", "value_range", "frames", "step_pooling",
        "window_pooling", "score", "min_frames", "max_frames", "window_frames", "stride_frames",
    ]  # fmt: skip
    assert Preset.from_json(text).to_json() == text


@pytest.mark.parametrize(("text", "says"), [
    ("", "not JSON"), ("wlasl", "not JSON"), ("[1]", "JSON object with a name"), ("{}", "JSON object with a name"),
    ('{"name": 5}', "JSON object with a name"),
])  # fmt: skip
def test_invalid_json_is_rejected(text: str, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        Preset.from_json(text)


@pytest.mark.parametrize(("fields", "says"), [
    ('"future": 1', "'future', which this asl-triton does not know: upgrade asl-triton"),
    ('"colour": "CMYK"', "colour is 'CMYK', not one of"),
    ('"colour": 5', "invalid colour 5"),
    ('"score": null', "invalid score None"),
    ('"frames": "some"', "frames is 'some'"),
    ('"step_pooling": "min"', "step_pooling is 'min'"),
    ('"window_pooling": "min"', "window_pooling is 'min'"),
    ('"min_frames": 9.0', "invalid min_frames 9.0"),
    ('"min_frames": true', "invalid min_frames True"),
    ('"min_frames": -1', "invalid min_frames -1"),
    ('"min_frames": "9"', "invalid min_frames '9'"),
    ('"min_frames": 65', "min_frames is above window_frames"),
    ('"max_frames": 1e999', "invalid max_frames inf"),
    (f'"max_frames": {10**400}', "invalid max_frames 1000"),
    ('"max_frames": 10', "1 <= stride_frames <= window_frames <= max_frames"),
    ('"stride_frames": 0', "1 <= stride_frames"),
    ('"square": 100', "square is 100, less than"),
    ('"square": 1000000', "invalid square 1000000"),
    ('"square": 256.5', "invalid square 256.5"),
    ('"square": null, "min_side": 100', "min_side must be 224 or more"),
    ('"frame_rate": 0', "frame_rate is 0"),
    ('"frame_rate": NaN', "invalid frame_rate nan"),
    ('"frame_rate": "25"', "invalid frame_rate '25'"),
    ('"value_range": [1, 0]', "value_range must be ascending"),
    ('"value_range": [0, NaN]', "invalid value_range"),
    ('"value_range": [0]', "invalid value_range"),
    ('"value_range": 1', "invalid value_range 1"),
    ('"framing": "face"', "framing is 'face', not one of"),
    ('"framing": "signer"', "framing by the signer needs square, with square_above 0"),
    ('"step_from": [160, 96]', "step_from must be ascending"),
    ('"step_from": [0]', "step_from must be ascending"),
    ('"step_from": 96', "invalid step_from 96"),
    ('"step_from": [1.5]', "invalid step_from"),
    ('"latest_start": -1', "invalid latest_start -1"),
])  # fmt: skip
def test_invalid_field_is_rejected(fields: str, says: str) -> None:
    values = {**json.loads(PRESETS["wlasl"].to_json()), "name": "mine"}
    text = json.dumps(values)[:-1] + f", {fields}}}"
    with pytest.raises(ContractError, match="preset 'mine'") as raised:
        Preset.from_json(text)
    assert says in str(raised.value)


def test_omitted_fields_have_defaults() -> None:
    preset = Preset.from_json('{"name": "small", "square": 224, "value_range": [0, 1]}')
    assert preset == Preset(name="small", square=224, value_range=(0.0, 1.0))
