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
LARGEST = 10_000  # of the numbers in a preset: frames, pixels, frames per second
INPUT_SIZE = 224  # height and width, in pixels, of what every model eats


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How clips are prepared for a checkpoint, and how its logits become confidences.

    Resizing, per frame: a shorter side below `min_side` is scaled up to it; then, where the original height or width
    is above `square_above`, the frame becomes `square` x `square`, aspect ignored; then the center `INPUT_SIZE`
    square is cut out. With `framing` "signer", what is cut out is the signer's box instead: see
    `video.preprocessing.crop_signer`.

    `frames` says what a request carries: the whole "clip"; "window"s of exactly `window_frames`; or, with "centered",
    `window_frames` frames around the clip's middle, every one, or from each clip length in `step_from` on every second,
    third ... frame. Centered frames begin at frame `latest_start` at the latest.
    """

    name: str
    frame_rate: float | None = None  # frames per second asked for; None takes the clip's own
    min_side: int = 0  # pixels; 0 never scales up
    square: int | None = None  # pixels; None never squares
    square_above: int = 0  # pixels
    colour: Color = "RGB"  # the order the weights expect
    value_range: tuple[float, float] = (-1.0, 1.0)  # of 0 and 255, as the weights expect
    frames: Frames = "clip"
    # Over time, in the network. "mean-positions" averages before the steps do; "max-interpolated" is the maximum of the
    # steps, interpolated linearly to `window_frames`.
    step_pooling: StepPooling = "max"
    window_pooling: WindowPooling = "max"
    score: Score = "sigmoid"
    min_frames: int = 9  # shorter clips repeat their last frame
    max_frames: int = 300  # longer clips are windowed even where the whole clip is the rule
    window_frames: int = 64
    stride_frames: int = 32
    framing: Framing = "frame"  # of the picture: the whole frame, or the signer's box
    step_from: tuple[int, ...] = ()  # frames; rising
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
            raise ContractError(f"preset {self.name!r}: wants 1 <= stride_frames <= window_frames <= max_frames")
        if self.min_frames > self.window_frames:
            raise ContractError(f"preset {self.name!r}: min_frames is above window_frames")
        if self.framing == "signer" and (self.square is None or self.square_above):
            raise ContractError(f"preset {self.name!r}: framing by the signer needs square, and square_above 0")
        if list(self.step_from) != sorted(set(self.step_from)) or 0 in self.step_from:
            raise ContractError(f"preset {self.name!r}: step_from must rise from above 0, not {self.step_from}")
        if self.frame_rate is not None and not 0 < self.frame_rate <= 1000:
            raise ContractError(f"preset {self.name!r}: frame_rate is {self.frame_rate}, not within 0 to 1000")
        if not self.value_range[0] < self.value_range[1]:
            raise ContractError(f"preset {self.name!r}: value_range must rise, not {self.value_range}")

    @property
    def max_centered_frames(self) -> int:
        """How many frames from a clip's first one on can be among its centered frames."""
        return self.latest_start + self.window_frames * (len(self.step_from) + 1)

    def to_json(self) -> str:
        """The preset as one JSON object.

        Fields that earlier versions did not have are left out where they have their defaults, so that a preset of an
        earlier version is written as it was: journals and older clients know it by its JSON.
        """
        values = dataclasses.asdict(self)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return json.dumps({k: v for k, v in values.items() if k not in _ADDED or v != defaults[k]})

    @classmethod
    def from_json(cls, text: str) -> "Preset":
        """Read what `to_json` wrote.

        Raises:
            ContractError: not JSON, no name, an unknown field, a value of another type or outside its choices.
        """
        try:
            values = json.loads(text)
        except ValueError as exc:
            raise ContractError(f"a preset must be a JSON object, and this is not JSON: {text[:60]!r}") from exc
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
_ADDED = {"framing", "step_from", "latest_start"}  # by later versions
MAX_STEP = 10  # of centered frames


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
        raise ContractError(f"preset {name!r}: {field} cannot be {value!r}")


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
        # Albanie, Varol et al. 2020 (gulvarol/bsl1k): demo/demo.py and evaluate.py, which know no box.
        _BSL1K,
        # The same for BSL-1K itself, which was trained and tested on 16 frames.
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
        # The earlier project, ASL_Inference's inference.py: what WLASL's weights were not trained on.
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
    """One of `PRESETS` by its name, or a preset from a JSON file.

    Raises:
        AslTritonError: it is neither.
        ContractError: the file is not a preset.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    try:
        content = read_at_most(Path(name_or_path), MAX_PRESET_BYTES)
        if content is None:
            raise ContractError(f"{name_or_path} is larger than {MAX_PRESET_BYTES // 1000} kB: not a preset")
        return Preset.from_json(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise AslTritonError(
            f"{name_or_path!r} is neither a preset ({', '.join(PRESETS)}) nor a readable JSON file of one"
        ) from exc
