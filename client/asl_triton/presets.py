"""Preset: the one place that says how a checkpoint was trained, and so how its clips must be prepared and scored.

The exporter writes a preset as JSON into the served model's parameter `asl_triton.preset`; the client reads it from
there and never guesses.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from asl_triton.errors import AslTritonError, ContractError
from asl_triton.files import read_at_most

Color = Literal["RGB", "BGR"]
Frames = Literal["clip", "window", "centered"]
Framing = Literal["frame", "signer"]
StepPooling = Literal["max", "max-interpolated", "mean", "mean-positions"]
WindowPooling = Literal["max", "mean"]
Score = Literal["sigmoid", "softmax"]

MAX_PRESET_BYTES = 1_000_000
LARGEST = 10_000  # limit on any number in a preset: frames, pixels, frames per second
INPUT_SIZE = 224  # pixels, height and width of every model's input


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How clips are prepared for a checkpoint, and how its logits become confidences.

    Each frame is resized in three steps. If its shorter side is below `min_side`, the frame is scaled up to that. If
    its original height or width is above `square_above`, it is resized to `square` x `square`, ignoring its aspect.
    Then the center `INPUT_SIZE` square is cut out, or with `framing` "signer" the signer's box, see
    `video.preprocessing.crop_signer`.

    `frames` says what one request carries: the whole "clip"; a "window" of exactly `window_frames`; or, with
    "centered", `window_frames` frames around the middle of the clip. Those are consecutive in short clips, and the step
    between them grows by one at each clip length in `step_from`. They start at frame `latest_start` at the latest.
    """

    name: str
    frame_rate: float | None = None  # frames per second; None keeps the clip's own
    min_side: int = 0  # pixels; 0 never scales up
    square: int | None = None  # pixels; None never squares
    square_above: int = 0  # pixels
    colour: Color = "RGB"  # the order the weights expect
    value_range: tuple[float, float] = (-1.0, 1.0)  # what the weights expect for 0 and 255
    frames: Frames = "clip"
    # How the network pools over time. "mean-positions" averages its positions instead of its steps; "max-interpolated"
    # is the maximum of the steps, interpolated linearly to `window_frames`.
    step_pooling: StepPooling = "max"
    window_pooling: WindowPooling = "max"
    score: Score = "sigmoid"
    min_frames: int = 9  # shorter clips repeat their last frame
    max_frames: int = 300  # longer clips are cut into windows even if `frames` is "clip"
    window_frames: int = 64
    stride_frames: int = 32
    framing: Framing = "frame"  # crops come from the whole frame or from the signer's box
    step_from: tuple[int, ...] = ()  # clip lengths in frames, ascending
    latest_start: int = 160

    def __post_init__(self) -> None:
        for field, values in _CHOICES.items():
            if getattr(self, field) not in values:
                raise ContractError(f"preset {self.name!r}: {field} is {getattr(self, field)!r}, not one of {values}")
        if self.square is not None and self.square < INPUT_SIZE:
            raise ContractError(f"preset {self.name!r}: square is {self.square}, less than the input's {INPUT_SIZE}")
        if self.square is None and self.min_side < INPUT_SIZE:
            raise ContractError(f"preset {self.name!r}: without square, min_side must be {INPUT_SIZE} or more")
        if not 1 <= self.stride_frames <= self.window_frames <= self.max_frames:
            raise ContractError(f"preset {self.name!r}: needs 1 <= stride_frames <= window_frames <= max_frames")
        if self.min_frames > self.window_frames:
            raise ContractError(f"preset {self.name!r}: min_frames is above window_frames")
        if self.framing == "signer" and (self.square is None or self.square_above):
            raise ContractError(f"preset {self.name!r}: framing by the signer needs square, with square_above 0")
        if list(self.step_from) != sorted(set(self.step_from)) or 0 in self.step_from:
            raise ContractError(f"preset {self.name!r}: step_from must be ascending and above 0, not {self.step_from}")
        if self.frame_rate is not None and not 0 < self.frame_rate <= 1000:
            raise ContractError(f"preset {self.name!r}: frame_rate is {self.frame_rate}, not between 0 and 1000")
        if not self.value_range[0] < self.value_range[1]:
            raise ContractError(f"preset {self.name!r}: value_range must be ascending, not {self.value_range}")

    @property
    def longest_window(self) -> int:
        """How many frames a window has at most."""
        return self.max_frames if self.frames == "clip" else self.window_frames

    @property
    def max_centered_frames(self) -> int:
        """The number of frames at the start of a clip that can be among its centered frames."""
        return self.latest_start + self.window_frames * (len(self.step_from) + 1)

    def to_json(self) -> str:
        """Return the preset as a JSON object.

        Fields that earlier versions did not have are left out if they have their default values, so that presets of
        earlier versions are written as before. Journals and older clients compare presets by their JSON.
        """
        values = dataclasses.asdict(self)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return json.dumps({k: v for k, v in values.items() if k not in _ADDED or v != defaults[k]})

    @classmethod
    def from_json(cls, text: str) -> "Preset":
        """Read what `to_json` wrote.

        Raises:
            ContractError: the text is not JSON, has no name or an unknown field, or a value is invalid.
        """
        try:
            values = json.loads(text)
        except ValueError as exc:
            raise ContractError(f"a preset must be a JSON object, but this is not JSON: {text[:60]!r}") from exc
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            raise ContractError(f"a preset must be a JSON object with a name, not {text[:60]!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        for field, value in values.items():
            if field not in known:
                raise ContractError(
                    f"preset {values['name']!r} has the field {field!r}, which this asl-triton does not know: "
                    "upgrade asl-triton, or export the model again with this version"
                )
            _check_type(values["name"], field, value)
        if "value_range" in values:
            values["value_range"] = tuple(float(v) for v in values["value_range"])
        if "step_from" in values:
            values["step_from"] = tuple(values["step_from"])
        return cls(**values)


_CHOICES: dict[str, tuple[str, ...]] = {
    "colour": get_args(Color),
    "frames": get_args(Frames),
    "framing": get_args(Framing),
    "step_pooling": get_args(StepPooling),
    "window_pooling": get_args(WindowPooling),
    "score": get_args(Score),
}
_INTEGERS = {
    "min_side", "square_above", "min_frames", "max_frames", "window_frames", "stride_frames", "latest_start"
}  # fmt: skip
_ADDED = {"framing", "step_from", "latest_start"}  # fields that earlier versions did not have
MAX_STEP = 10  # between centered frames


def _check_type(name: str, field: str, value: Any) -> None:
    def is_number(v: Any) -> bool:
        return isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= LARGEST

    def is_whole(v: Any) -> bool:
        return is_number(v) and isinstance(v, int) and v >= 0

    if field in _INTEGERS:
        good = is_whole(value)
    elif field == "square":
        good = value is None or is_whole(value)
    elif field == "frame_rate":
        good = value is None or is_number(value)
    elif field == "step_from":
        good = isinstance(value, list) and len(value) < MAX_STEP and all(is_whole(v) for v in value)
    elif field == "value_range":
        good = isinstance(value, list) and len(value) == 2 and all(is_number(v) for v in value)
    else:
        good = isinstance(value, str)
    if not good:
        raise ContractError(f"preset {name!r}: invalid {field} {value!r}")


_BSL1K = Preset(
    name="bsl1k",
    frame_rate=25.0,
    square=256,
    value_range=(-0.5, 0.5),
    frames="window",
    step_pooling="mean-positions",
    window_pooling="mean",
    score="softmax",
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # WLASL's training loader, code/I3D/datasets/nslt_dataset.py; training was per-class binary cross-entropy.
        Preset(name="wlasl", min_side=226, square=256, square_above=256, colour="BGR"),
        # WLASL's test loader, code/I3D/datasets/nslt_dataset_all.py, for clips already at 256 pixels.
        Preset(name="wlasl-test", min_side=226, colour="BGR"),
        # Albanie, Varol et al. 2020 (gulvarol/bsl1k): demo/demo.py and evaluate.py, without a box of the signer.
        _BSL1K,
        # The same for BSL-1K itself, where the network was trained and tested on 16 frames.
        dataclasses.replace(_BSL1K, name="bsl1k-16", window_frames=16, stride_frames=8),
        # The evaluation behind bsl1k's published accuracy on WLASL and MS-ASL: datasets/videodataset.py, `use_bbox`.
        dataclasses.replace(_BSL1K, name="bsl1k-person", framing="signer"),
        # Desai et al. 2023 (microsoft/ASL-citizen-code): I3D/aslcitizen_dataset.py and aslcitizen_testing.py.
        Preset(
            name="asl-citizen",
            min_side=226,
            square=256,
            square_above=256,
            colour="BGR",
            frames="centered",
            step_from=(96, 160),
            step_pooling="max-interpolated",
            score="softmax",
        ),
        # The earlier project, ASL_Inference's inference.py. WLASL's weights were not trained with this preprocessing.
        Preset(
            name="asl-inference",
            square=INPUT_SIZE,
            value_range=(0.0, 1.0),
            step_pooling="mean",
            window_pooling="mean",
            score="softmax",
        ),
    )
}


def read_preset(name_or_path: str) -> Preset:
    """Return one of `PRESETS` by name, or read a preset from a JSON file.

    Raises:
        AslTritonError: the argument is neither a preset's name nor a readable file.
        ContractError: the file is not a preset.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    try:
        content = read_at_most(Path(name_or_path), MAX_PRESET_BYTES)
        if content is None:
            raise ContractError(f"{name_or_path} is larger than {MAX_PRESET_BYTES // 1000} kB, too large for a preset")
        return Preset.from_json(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise AslTritonError(
            f"{name_or_path!r} is neither a preset ({', '.join(PRESETS)}) nor a readable JSON file"
        ) from exc
