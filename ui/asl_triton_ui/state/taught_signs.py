"""The signs that visitors teach: one dictionary in memory per visitor, or one file that all visitors share."""

import hashlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import gradio as gr

from asl_triton.errors import DictionaryError
from asl_triton.files import read_at_most, translate_write_errors
from asl_triton.models.served import ServedModel
from asl_triton.teaching.dictionary import Example, SignDictionary
from asl_triton.teaching.embedding import Embedding
from asl_triton_ui.options import MB, PageOptions
from asl_triton_ui.rendering import format_count

Signs = Literal["model", "taught", "both"]  # the signs to answer with
OWN: Signs = "model"
TAUGHT: Signs = "taught"
BOTH: Signs = "both"

MAX_EXAMPLES = 500  # in one visitor's dictionary
MAX_FILE_BYTES = 8 * 2**20  # in a file that a visitor loads; 500 examples take 2.5 MB
MAX_WHO_BYTES, MAX_BYTES = 40 * MB, 400 * MB  # for the dictionaries of one login or address, and of all together
COPIES = 2  # of an embedding in memory: in its example, and in the matrix of all vectors
SWEEP_EVERY_S = 60.0
EVERYTHING = "everything"


class Visitor(NamedTuple):
    """One open page and its owner, a login or an address."""

    who: str
    session: str

    @classmethod
    def of(cls, request: gr.Request) -> "Visitor":
        """Return the visitor who sent a request."""
        host = request.client.host if request.client else ""
        return cls(str(request.username or host), str(request.session_hash))


@dataclass
class Taught:
    """One visitor's dictionary, and the `time.monotonic` of its last use."""

    dictionary: SignDictionary
    used_s: float = field(default_factory=time.monotonic)


class TaughtSigns:
    """The dictionaries of all visitors. Thread-safe.

    Each change replaces a dictionary with a changed copy, so a running recognition keeps the signs it started with. A
    dictionary is deleted after `options.keep_minutes` without use. With `options.dictionary`, all visitors share one
    dictionary, which is read once and saved to its file on each change.

    Raises:
        DictionaryError: the shared file cannot be read.
    """

    def __init__(self, options: PageOptions) -> None:
        self.path, self.with_vocabulary = options.dictionary, options.with_vocabulary
        self.may_teach = options.dictionary is None or options.visitors_teach
        self.keep_minutes = options.keep_minutes
        self._shared = SignDictionary.load(self.path) if self.path is not None else None
        self._taught: dict[Visitor, Taught] = {}
        self._lock = threading.Lock()
        self._sweeper: threading.Thread | None = None

    def get(self, visitor: Visitor) -> SignDictionary | None:
        """Return a visitor's dictionary, None if there is none."""
        with self._lock:
            return self._get(visitor)

    def choose(self, signs: str, visitor: Visitor) -> tuple[SignDictionary | None, bool]:
        """Return the dictionary to answer a visitor with, if any, and whether the model's own glosses compete.

        Raises:
            DictionaryError: the visitor chose taught signs but has none.
        """
        if signs not in (TAUGHT, BOTH):
            return None, False
        dictionary = self.get(visitor)
        if dictionary is None or not len(dictionary):
            kept = "" if self.path else f" (unused ones are deleted after {self.keep_minutes:g} minutes)"
            raise DictionaryError(
                f"no signs are taught here{kept}: teach some on the Teach tab, or load your file there"
            )
        return dictionary, signs == BOTH

    def add(self, visitor: Visitor, gloss: str, embedding: Embedding, served: ServedModel, address: str) -> Example:
        """Add an example that the model `served` embedded.

        Raises:
            DictionaryError: the name is not a gloss, the clip is already an example, the signs were taught with another
                model, there is no room, or visitors may not teach here.
            AslTritonError: the shared file cannot be written.
        """
        with self._lock:
            before = self._get(visitor)
            # An empty dictionary may belong to another model.
            dictionary = before.copy() if before is not None and len(before) else SignDictionary(served)
            dictionary.check_model(served, address)
            number = 1 + sum(example.gloss == gloss for example in dictionary.examples)
            sources = {example.source for example in dictionary.examples}
            while (source := f"{gloss}, example {number}") in sources:
                number += 1
            example = dictionary.add(gloss, embedding, source=source)
            self._keep(visitor, dictionary)
            return example

    def load(self, visitor: Visitor, path: Path, served: ServedModel, address: str) -> int:
        """Add the signs from a file that a visitor uploaded, and return how many examples were added.

        Raises:
            DictionaryError, AslTritonError: the file is not a dictionary, or for the reasons given in `add`.
        """
        try:
            content = read_at_most(path, MAX_FILE_BYTES)
        except OSError as exc:
            raise DictionaryError(f"{path.name} was deleted in the meantime: choose it again") from exc
        if content is None:
            raise DictionaryError(
                f"{path.name} is larger than {MAX_FILE_BYTES // 2**20} MiB, this page's limit for a file of signs"
            )
        loaded = SignDictionary.from_bytes(content, path.name)
        loaded.check_model(served, address)
        check_size(loaded)
        with self._lock:
            before = self._get(visitor)
            dictionary = loaded if before is None or not len(before) else before.copy()
            added = len(loaded.examples) if dictionary is loaded else dictionary.merge(loaded)
            self._keep(visitor, dictionary)
            return added

    def remove(self, visitor: Visitor, name: str) -> str:
        """Remove the item that `list_removable` gave this name, and return its label.

        Raises:
            DictionaryError, AslTritonError: it was already removed, or for the reasons given in `add`.
        """
        with self._lock:
            before = self._get(visitor)
            if before is None:
                raise DictionaryError("nothing to remove: no signs are taught here")
            if name == EVERYTHING and self.path is None:
                del self._taught[visitor]
                return "all signs"
            dictionary = before.copy()
            kind, _, rest = name.partition(":")
            if kind == "sign":
                dictionary.remove(rest)
                what = rest
            else:
                found = [example for example in before.examples if hash_example(example) == rest]
                if not found:
                    raise DictionaryError("this example was already removed")
                dictionary.remove_example(found[0])
                what = found[0].source or f"an example of {found[0].gloss}"
            self._keep(visitor, dictionary)
            return what

    def forget_unused(self) -> None:
        """Delete the dictionaries that were not used for `keep_minutes`."""
        oldest_s = time.monotonic() - 60 * self.keep_minutes
        with self._lock:
            self._taught = {visitor: taught for visitor, taught in self._taught.items() if taught.used_s > oldest_s}

    def _get(self, visitor: Visitor) -> SignDictionary | None:
        if self.path is not None:
            return self._shared
        taught = self._taught.get(visitor)
        if taught is None:
            return None
        taught.used_s = time.monotonic()
        return taught.dictionary

    def _keep(self, visitor: Visitor, dictionary: SignDictionary) -> None:
        """Replace a visitor's dictionary or the shared one. The caller holds the lock."""
        if not self.may_teach:
            raise DictionaryError(
                "visitors of this page cannot change its signs; its operator can allow it (--visitors-teach)"
            )
        if self.path is not None:
            with translate_write_errors(self.path):
                dictionary.save(self.path)
            self._shared = dictionary
            return
        check_size(dictionary)
        sizes = {known: count_bytes(taught.dictionary) for known, taught in self._taught.items()}
        sizes[visitor] = count_bytes(dictionary)
        if sum(size for known, size in sizes.items() if known.who == visitor.who) > MAX_WHO_BYTES:
            raise DictionaryError(
                "you are teaching on too many open pages: download the signs on one of them and remove them there"
            )
        if sum(sizes.values()) > MAX_BYTES:
            raise DictionaryError("this page is out of room for signs: try again in an hour")
        self._taught[visitor] = Taught(dictionary)
        if self._sweeper is None:
            self._sweeper = threading.Thread(target=self._sweep, name="taught-sweep", daemon=True)
            self._sweeper.start()

    def _sweep(self) -> None:
        """Delete unused dictionaries until none are left."""
        while True:
            time.sleep(SWEEP_EVERY_S)
            self.forget_unused()
            with self._lock:
                if not self._taught:
                    self._sweeper = None
                    return


def check_size(dictionary: SignDictionary) -> None:
    """Check the size of a visitor's dictionary.

    Raises:
        DictionaryError: it has more than `MAX_EXAMPLES` examples.
    """
    if len(dictionary.examples) > MAX_EXAMPLES:
        raise DictionaryError(
            f"this page allows up to {MAX_EXAMPLES} examples, not {len(dictionary.examples):,}: remove some, or use "
            "`asl-triton teach`"
        )


def count_bytes(dictionary: SignDictionary) -> int:
    """Estimate the bytes that a dictionary takes in memory."""
    return COPIES * dictionary.vectors().nbytes


def hash_example(example: Example) -> str:
    """Return a name for an example that stays the same when others are added or removed."""
    return hashlib.sha256(example.embedding.vector.tobytes()).hexdigest()[:16]


def list_removable(dictionary: SignDictionary | None, *, with_everything: bool) -> list[tuple[str, str]]:
    """List everything that can be removed, each as its label and its name for `TaughtSigns.remove`."""
    if dictionary is None or not dictionary.examples:
        return []
    listed = [("All signs", EVERYTHING)] if with_everything else []
    for gloss in dictionary.glosses:
        examples = [example for example in dictionary.examples if example.gloss == gloss]
        listed.append((f"{gloss}: {format_count(len(examples), 'example')}", f"sign:{gloss}"))
        if len(examples) > 1:
            listed += [(example.source or gloss, f"example:{hash_example(example)}") for example in examples]
    return listed
