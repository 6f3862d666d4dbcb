"""Reads glosses from files: one per line, or WLASL's class list of index, tab, gloss."""

from collections import Counter
from pathlib import Path

from asl_triton.errors import LabelsError
from asl_triton.files import read_at_most

MAX_LABELS_BYTES = 16 * 2**20


def read_labels(path: Path) -> tuple[str, ...]:
    """Read glosses in class order: one per line, or `index<TAB>gloss` with indices counting from 0.

    Raises:
        LabelsError: the file cannot be read, is not text, is empty, has an empty line or names a gloss twice.
    """
    try:
        content = read_at_most(path, MAX_LABELS_BYTES)
        if content is None:
            raise LabelsError(f"{path} is larger than {MAX_LABELS_BYTES // 2**20} MiB, too large for a list of glosses")
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as exc:
        raise LabelsError(
            f"cannot read the labels {path}: {exc.strerror or exc}. Give a text file with one gloss per line"
        ) from exc
    except UnicodeDecodeError as exc:
        raise LabelsError(f"the labels {path} are not UTF-8 text: give a file with one gloss per line") from exc
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise LabelsError(f"the labels {path} are empty: give a file with one gloss per line")
    if all("\t" in line for line in lines):
        rows = [line.split("\t", 1) for line in lines]
        for number, (index, _) in enumerate(rows):
            if index.strip() != str(number):
                raise LabelsError(f"{path}, line {number + 1}: expected index {number}, found {index!r}")
        lines = [gloss for _, gloss in rows]
    labels = tuple(line.strip() for line in lines)
    if "" in labels:
        raise LabelsError(f"{path}, line {labels.index('') + 1} is empty: every class needs a gloss")
    gloss, times = Counter(labels).most_common(1)[0]
    if times > 1:
        at = [str(n + 1) for n, label in enumerate(labels) if label == gloss]
        raise LabelsError(f"{path} lists {gloss!r} {times} times (lines {', '.join(at[:5])}): glosses must be unique")
    return labels
