"""The sample clips: the demo signer, which only the demo checkpoint knows."""

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
    """Whether a model knows the demo signer.

    One whose vocabulary only happens to contain the samples' glosses learned them from people.
    """
    return served is not None and frozenset(served.labels) == frozenset(read_labels(FOLDER / "labels.txt"))
