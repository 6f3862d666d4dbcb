"""Model card: what a model is good for, and how confident it has to be. It travels with the weights.

In a bundle, it is `card.json`; the exporter writes it into the served model's parameters `asl_triton.purpose`,
`asl_triton.caveat` and `asl_triton.min_confidence`, and the client reads it from there. A model without them has an
empty card.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asl_triton.errors import ContractError
from asl_triton.files import read_at_most

PARAMETER_PREFIX = "asl_triton."  # of the fields' names in a model's config
MAX_TEXT = 500  # characters
MAX_CARD_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known about a model besides its preset.

    `purpose` says what it was trained on and is good for. `caveat` is a warning that goes with each of its answers, or
    empty. Answers whose confidence is below `min_confidence`, 0 to 1 in whole percents, are unsure; None if it was not
    measured. Line breaks in the texts become spaces.

    Raises:
        ContractError: a text is too long or not a text, or the confidence is out of range.
    """

    purpose: str = ""
    caveat: str = ""
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        for name in ("purpose", "caveat"):
            text = getattr(self, name)
            if not isinstance(text, str) or len(text) > MAX_TEXT:
                raise ContractError(f"the model's {name} must be a text of at most {MAX_TEXT} characters")
            object.__setattr__(self, name, " ".join(text.split()))
        if self.min_confidence is not None:
            object.__setattr__(self, "min_confidence", parse_confidence(self.min_confidence))

    def describe(self) -> str:
        """Return the card as one line for people, or an empty string if nothing is known."""
        threshold = "" if self.min_confidence is None else f"answers below {self.min_confidence:.0%} are unsure"
        return "; ".join(filter(None, (self.purpose, self.caveat, threshold)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings that go with each answer."""
        return (self.caveat,) if self.caveat else ()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "ModelCard":
        """Read a card from a model's config. Configs written by earlier versions have no such parameters."""
        values = {field.name: parameters.get(PARAMETER_PREFIX + field.name) for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if value})  # type: ignore[arg-type]

    def to_parameters(self) -> dict[str, str]:
        """Return the parameters for a model's config, without empty ones."""
        return {PARAMETER_PREFIX + name: str(value) for name, value in self._known().items()}

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read what `to_json` wrote.

        Raises:
            ContractError: the text is not a JSON object, or has unknown fields or invalid values.
        """
        try:
            values = json.loads(text)
        except ValueError as exc:
            raise ContractError(f"a model card must be a JSON object, but this is not JSON: {text[:60]!r}") from exc
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or not set(values) <= set(names):
            raise ContractError(f"a model card must be a JSON object of {', '.join(names)}, not {text[:60]!r}")
        return cls(**values)

    def to_json(self) -> str:
        """Return the card as a JSON object, without empty fields."""
        return json.dumps(self._known(), indent=1, ensure_ascii=False)

    @classmethod
    def read(cls, path: Path) -> "ModelCard":
        """Read a file that contains what `to_json` returned. A missing file gives an empty card.

        Raises:
            ContractError: the file cannot be read, or is not a card.
        """
        try:
            content = read_at_most(path, MAX_CARD_BYTES)
            if content is None:
                raise ContractError(f"{path} is larger than {MAX_CARD_BYTES // 1000} kB, too large for a model card")
            return cls.from_json(content.decode("utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError) as exc:
            raise ContractError(f"cannot read the model card {path}: {exc}") from exc
        except ContractError as exc:
            raise ContractError(f"{path}: {exc}") from exc

    def _known(self) -> dict[str, str | float]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in ("", None)}


EMPTY_CARD = ModelCard()


def parse_confidence(value: object) -> float:
    """Parse a confidence from 0 to 1, a number or its text, and round it to whole percents.

    Raises:
        ContractError: the value is not a number from 0 to 1.
    """
    try:
        confidence = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        confidence = -1.0
    if isinstance(value, bool) or not 0 <= confidence <= 1:
        raise ContractError(f"the model's min_confidence is {value!r}: it must be a number from 0 to 1")
    return round(confidence, 2)
