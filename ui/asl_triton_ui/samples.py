"""The sample clips of the demo signer, whom only the demo checkpoint knows."""

from dataclasses import dataclass
from pathlib import Path

from asl_triton.labels import read_labels
from asl_triton.models.served import ServedModel

FOLDER = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class Sample:
    """A clip that ships with the page."""

    gloss: str
    path: Path


SAMPLES = tuple(Sample(gloss, FOLDER / f"{gloss}.mp4") for gloss in ("book", "hello", "mother", "thank you", "where"))


def fits_model(served: ServedModel | None) -> bool:
    """Return whether a model knows the demo signer.

    The vocabulary must be exactly the demo's: a larger one that contains its glosses was learned from people.
    """
    return served is not None and frozenset(served.labels) == frozenset(read_labels(FOLDER / "labels.txt"))
