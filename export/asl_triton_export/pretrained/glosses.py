"""Reads glosses as authors publish them: class lists, JSON, CSV, and bsl1k's pickles, without running code in them."""

import csv
import json
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from asl_triton.errors import LabelsError
from asl_triton.labels import read_labels

GlossFormat = Literal["class-list", "info-pickle", "json-list", "citizen-csv"]

MAX_PICKLE_BYTES = 256 * 2**20

# What a pickle may refer to. NumPy's functions come from NumPy itself, since versions 1 and 2 keep them elsewhere.
_RECONSTRUCT: Any = np.zeros(1).__reduce__()[0]
_SCALAR: Any = np.float64(0).__reduce__()[0]
_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    **{("builtins", kind.__name__): kind for kind in (dict, frozenset, int, list, set)},
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _RECONSTRUCT),
            ("multiarray", "scalar", _SCALAR),
            ("numeric", "_frombuffer", _FROM_BUFFER),
        )
    },
}


def read_glosses(path: Path, kind: GlossFormat, num_classes: int) -> tuple[str, ...]:
    """Read the glosses of a checkpoint's classes, in order.

    A `class-list` is WLASL's `index<TAB>gloss`; its first k lines are the vocabulary of WLASL-k. An `info-pickle` is
    bsl1k's `info.pkl` or `bsl1k_vocab.pkl`, with the glosses under `words`. A `json-list` is MS-ASL's
    `MSASL_classes.json`. A `citizen-csv` is ASL Citizen's `train.csv`; the glosses are its sorted third column.

    Raises:
        LabelsError: the file is unreadable, has the wrong number of glosses, or is a pickle that refers to anything but
            plain containers, strings, and NumPy arrays.
    """
    if kind == "class-list":
        glosses = read_labels(path)[:num_classes]
    elif kind == "json-list":
        glosses = read_json_list(path)
    elif kind == "citizen-csv":
        glosses = read_citizen_glosses(path)
    else:
        content = read_plain_pickle(path)
        words = content.get("words") if isinstance(content, dict) else None
        words = words.tolist() if isinstance(words, np.ndarray) else words
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise LabelsError(f"{path} has no list of glosses under 'words'")
        glosses = tuple(words)
    if len(glosses) != num_classes:
        raise LabelsError(f"{path} has {len(glosses)} glosses, but {num_classes} were expected")
    return glosses


def read_json_list(path: Path) -> tuple[str, ...]:
    """Read a JSON array of strings.

    Raises:
        LabelsError: the file is something else.
    """
    try:
        words = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise LabelsError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise LabelsError(f"{path} is not JSON ({exc})") from exc
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise LabelsError(f"{path} is not a JSON list of glosses")
    return tuple(words)


def read_citizen_glosses(path: Path) -> tuple[str, ...]:
    """Read the distinct glosses of an ASL Citizen split, sorted.

    Raises:
        LabelsError: the file is not such a split.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file)
    except OSError as exc:
        raise LabelsError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (ValueError, csv.Error) as exc:
        raise LabelsError(f"{path} is not a CSV file of ASL Citizen ({exc})") from exc
    if len(header) < 3 or header[2].strip() != "Gloss" or any(len(row) < 3 for row in rows):
        raise LabelsError(f"{path} is not a split of ASL Citizen: its third column must be 'Gloss' in every row")
    return tuple(sorted({row[2].strip() for row in rows}))


def read_plain_pickle(path: Path) -> object:
    """Read a pickle from the web, provided it has only plain containers, strings, numbers, and NumPy arrays.

    Raises:
        LabelsError: it refers to anything else (the message says what), or is not a pickle.
    """
    try:
        if path.stat().st_size > MAX_PICKLE_BYTES:
            raise LabelsError(f"{path} is larger than {MAX_PICKLE_BYTES // 2**20} MiB: not a list of glosses")
        with path.open("rb") as file:
            # NumPy arrays pickled by Python 2 need Latin-1.
            return _PlainUnpickler(file, encoding="latin1").load()
    except OSError as exc:
        raise LabelsError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except _ForbiddenError as exc:
        raise LabelsError(
            f"{path} is a pickle that refers to {exc}, which could run code: only plain containers, strings, and NumPy "
            "arrays are accepted from the web"
        ) from exc
    except LabelsError:
        raise
    except Exception as exc:  # a broken pickle can raise anything
        raise LabelsError(f"{path} is damaged, or is not a pickle ({type(exc).__name__}: {str(exc)[:80]})") from exc


class _ForbiddenError(Exception):
    """A pickle refers to something that is not allowed; the argument is its full name."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenError(f"the persistent object {str(pid)[:40]!r}")
