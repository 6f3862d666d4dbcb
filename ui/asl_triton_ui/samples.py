"""The sample clips: the demo signer, whom only the demo checkpoint knows."""

from dataclasses import dataclass
from pathlib import Path

from asl_triton.models.served import ServedModel

FOLDER = Path(__file__).parent / "samples"
# Of the demo checkpoint. A vocabulary that only happens to hold these words was learnt from people.
DEMO_VOCABULARY = frozenset(
    (
        *("book", "drink", "eat", "father", "go", "hello", "help", "home", "like", "more"),
        *("mother", "no", "please", "sorry", "stop", "thank you", "want", "where", "who", "yes"),
    )
)


@dataclass(frozen=True)
class Sample:
    """A clip that ships with the page."""

    gloss: str
    path: Path


SAMPLES = tuple(Sample(gloss, FOLDER / f"{gloss}.mp4") for gloss in ("book", "hello", "mother", "thank you", "where"))


def fits_model(served: ServedModel | None) -> bool:
    """Whether the samples are anything to this model."""
    return served is not None and frozenset(served.labels) == DEMO_VOCABULARY
