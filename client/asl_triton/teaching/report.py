"""Reports how well taught signs can be distinguished, and what would help."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asl_triton.teaching.classifier import compare_held_out
from asl_triton.teaching.dictionary import SignDictionary

ADVISABLE_EXAMPLES = 3  # with this many, most examples are recognized from the others
GOOD_EXAMPLES = 5  # beyond this, more examples help little
UNSURE = 0.5  # an example with a lower confidence does not look like its sign


@dataclass(frozen=True)
class SignReport:
    """A report on one taught sign.

    Each example is tested as if it had not been taught. `recognized` counts the examples that are nearest to their own
    sign, and `agreement` is the examples' mean confidence in it, 0 to 1; both are None for a sign with one example.
    `alike` is the other sign that examples are confused with, or that the only example is close to. `outliers` are the
    sources of examples that do not look like the others.
    """

    gloss: str
    examples: int
    recognized: int | None
    agreement: float | None
    alike: str | None
    outliers: tuple[str, ...]

    @property
    def advice(self) -> str:
        """What would help, as a sentence; empty if nothing is needed."""
        if self.outliers:
            return f"look at {', '.join(self.outliers)}: not like the other examples"
        if self.examples < ADVISABLE_EXAMPLES:
            missing = ADVISABLE_EXAMPLES - self.examples
            return f"{missing} more {'example' if missing == 1 else 'examples'} would help"
        if self.alike:
            return f"looks like {self.alike}: record both again and make the difference clear"
        if self.recognized is not None and self.recognized < self.examples:
            more = max(GOOD_EXAMPLES - self.examples, 2)
            return f"{more} more examples would help"
        return ""


def report_signs(dictionary: SignDictionary) -> tuple[SignReport, ...]:
    """Report on each sign of a dictionary, in the dictionary's order.

    Raises:
        DictionaryError: it has no signs.
    """
    return tuple(_iter_reports(dictionary))


def _iter_reports(dictionary: SignDictionary) -> Iterator[SignReport]:
    classifier = dictionary.classifier()
    sign_ids, glosses = dictionary.sign_ids(), dictionary.glosses
    held_out = compare_held_out(dictionary.vectors().astype(np.float64), sign_ids)
    signs = sign_ids[held_out.examples]
    confidences = 1 / (1 + np.exp(-np.clip(classifier.scale * (held_out.own - classifier.threshold), -500, 500)))
    is_confused = held_out.others > held_out.own  # False where either is NaN
    is_close = np.isnan(held_out.own) & (held_out.others > classifier.threshold)
    counts = np.bincount(sign_ids)
    for sign_id, gloss in enumerate(glosses):
        members = signs == sign_id
        is_lone = counts[sign_id] == 1
        suspect = held_out.nearest[members & (is_confused | is_close)]
        doubtful = members & is_confused & (confidences < UNSURE)
        # Of two examples, either may be the outlier. If most are doubtful, the sign is the problem.
        is_outlying = counts[sign_id] >= ADVISABLE_EXAMPLES and 2 * doubtful.sum() < members.sum()
        places = held_out.examples[doubtful] if is_outlying else []
        yield SignReport(
            gloss=gloss,
            examples=int(counts[sign_id]),
            recognized=None if is_lone else int((members & ~is_confused).sum()),
            agreement=None if is_lone else float(confidences[members].mean()),
            alike=glosses[int(np.bincount(suspect).argmax())] if len(suspect) and not len(places) else None,
            outliers=tuple(dictionary.examples[place].source or f"example {place + 1}" for place in places),
        )
