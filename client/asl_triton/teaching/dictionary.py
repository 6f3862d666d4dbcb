"""`SignDictionary`: the examples of taught signs for one model, stored in one file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from asl_triton.errors import ContractError, DictionaryError
from asl_triton.files import atomic_write, read_at_most
from asl_triton.models.served import ServedModel
from asl_triton.presets import Preset
from asl_triton.teaching.classifier import SignClassifier
from asl_triton.teaching.embedding import Embedding, Vector

SUFFIX = ".safetensors"
FORMAT = 1
METADATA, VECTORS, ENERGIES = "asl_triton.dictionary", "vectors", "energies"
MAX_BYTES = 2**30
MAX_NAME = 100  # characters in a gloss
MAX_SOURCE = 1_000  # characters of an example's source in a file
SAME = 1 - 1e-5  # two examples with a higher cosine similarity are the same clip


@dataclass(frozen=True)
class TaughtModel:
    """The properties of a model that embeddings depend on. Embeddings of different models are not comparable."""

    checkpoint_sha256: str
    precision: str
    preset: str  # JSON

    @classmethod
    def of(cls, served: ServedModel) -> "TaughtModel":
        """Return the properties of a served model."""
        return cls(served.checkpoint_sha256, served.precision, served.preset.to_json())

    def describe_difference(self, other: "TaughtModel") -> str | None:
        """Describe the first difference from another model; None if there is none."""
        if self.checkpoint_sha256 != other.checkpoint_sha256:
            return f"another checkpoint ({self.checkpoint_sha256[:12]}, not {other.checkpoint_sha256[:12]})"
        if self.precision != other.precision:
            return f"another precision ({self.precision}, not {other.precision})"
        preset, wanted = Preset.from_json(self.preset), Preset.from_json(other.preset)
        return None if preset == wanted else f"another preset ({preset.name!r}, not {wanted.name!r})"


@dataclass(frozen=True)
class Example:
    """One clip of a taught sign: its embedding, its source, and when it was added (UTC)."""

    gloss: str
    embedding: Embedding
    source: str = ""
    added: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))


class SignDictionary:
    """Signs taught by examples, in the order in which they were first added.

    Examples:
        >>> with Recognizer("localhost:8001") as recognizer:
        ...     dictionary = SignDictionary(recognizer.model())
        ...     for clip in ("coffee-1.mp4", "coffee-2.mp4", "coffee-3.mp4"):
        ...         dictionary.add("coffee", recognizer.embed(clip), source=clip)
        >>> dictionary.save("mine.safetensors")
    """

    def __init__(self, model: ServedModel | TaughtModel) -> None:
        self.model = TaughtModel.of(model) if isinstance(model, ServedModel) else model
        self._examples: list[Example] = []
        self._rows = np.zeros((0, 0), np.float32)  # their embeddings, with room for more
        self._classifier: SignClassifier | None = None

    @property
    def examples(self) -> tuple[Example, ...]:
        """All examples, in the order they were added."""
        return tuple(self._examples)

    @property
    def glosses(self) -> tuple[str, ...]:
        """The taught signs."""
        return tuple(dict.fromkeys(example.gloss for example in self._examples))

    def __len__(self) -> int:
        """The number of taught signs."""
        return len(self.glosses)

    def __contains__(self, gloss: object) -> bool:
        return any(example.gloss == gloss for example in self._examples)

    def add(self, gloss: str, embedding: Embedding, *, source: str = "") -> Example:
        """Add an example of a sign. Reports refer to it by its `source`.

        Raises:
            DictionaryError: the name is not a gloss, the embedding does not fit this model, or the same clip is already
                an example.
        """
        return self._append(Example(check_gloss(gloss), embedding, source))

    def remove(self, gloss: str, source: str | None = None) -> int:
        """Remove a sign, or only its examples from `source`. Returns how many examples were removed.

        Raises:
            DictionaryError: there is no such sign or example.
        """
        kept = [e for e in self._examples if e.gloss != gloss or (source is not None and e.source != source)]
        removed = len(self._examples) - len(kept)
        if not removed:
            what = f"example {source!r} of {gloss!r}" if source is not None and gloss in self else f"sign {gloss!r}"
            raise DictionaryError(f"the dictionary has no {what}. It has {self._list_glosses()}")
        self._replace(kept)
        return removed

    def remove_example(self, example: Example) -> None:
        """Remove one of `examples`.

        Raises:
            DictionaryError: it is not in the dictionary.
        """
        kept = [each for each in self._examples if each is not example]
        if len(kept) == len(self._examples):
            raise DictionaryError(f"the dictionary has no example {example.source!r} of {example.gloss!r}")
        self._replace(kept)

    def copy(self) -> "SignDictionary":
        """Return an independent copy with the same examples."""
        copied = SignDictionary(self.model)
        copied._replace(list(self._examples))
        return copied

    def merge(self, other: "SignDictionary") -> int:
        """Add the examples of another dictionary, skipping duplicates. Returns how many were added.

        Raises:
            DictionaryError: it was taught with another model, or has a clip of this dictionary under another gloss.
        """
        if difference := other.model.describe_difference(self.model):
            raise DictionaryError(f"the dictionaries cannot be merged: one was taught with {difference}")
        added = 0
        for example in other.examples:
            known = self._find_same(example.embedding)
            if known is None or known.gloss != example.gloss:
                self._append(example)
                added += 1
        return added

    def check_model(self, served: ServedModel, address: str) -> None:
        """Check that the signs were taught with this served model.

        Raises:
            DictionaryError: they were taught with another one.
        """
        if difference := self.model.describe_difference(TaughtModel.of(served)):
            raise DictionaryError(
                f"the dictionary was taught with {difference} than {served.name} on {address}: teach its clips again "
                "with this model (asl-triton teach), or serve the model that it was taught with"
            )

    def classifier(self) -> SignClassifier:
        """Return the classifier of the signs, with classes in the order of `glosses`. It is fitted on first use.

        Raises:
            DictionaryError: there are no signs yet.
        """
        if not self._examples:
            raise DictionaryError("the dictionary has no signs yet: add examples with `asl-triton teach`")
        if self._classifier is None:
            self._classifier = SignClassifier.fit(self.vectors(), self.sign_ids())
        return self._classifier

    def vectors(self) -> Vector:
        """Return the embedding vectors of all examples, (N, D)."""
        return self._rows[: len(self._examples)]

    def energies(self) -> npt.NDArray[np.float32]:
        """Return the embedding energies of all examples, (N,)."""
        return np.array([example.embedding.energy for example in self._examples], np.float32)

    def sign_ids(self) -> npt.NDArray[np.intp]:
        """Return the index in `glosses` of each example's gloss, (N,)."""
        place = {gloss: number for number, gloss in enumerate(self.glosses)}
        return np.array([place[example.gloss] for example in self._examples], np.intp)

    def hash(self) -> str:
        """Return a hash of the examples, which determine the answers together with the model."""
        digest = hashlib.sha256(self.vectors().astype(np.float16).tobytes())
        digest.update("\n".join(example.gloss for example in self._examples).encode())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the dictionary to a file, replacing an existing one.

        Raises:
            OSError: the file cannot be written.
        """
        with atomic_write(Path(path)) as file:
            file.write(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the content of the file that `save` writes."""
        entries = [{"gloss": e.gloss, "source": e.source, "added": e.added} for e in self._examples]
        metadata = {"format": FORMAT, "model": asdict(self.model), "examples": entries}
        tensors: dict[str, npt.NDArray[Any]] = {VECTORS: self.vectors().astype(np.float16), ENERGIES: self.energies()}
        return safetensors.numpy.save(tensors, {METADATA: json.dumps(metadata)})

    @classmethod
    def load(cls, path: str | Path) -> "SignDictionary":
        """Read a dictionary from a file.

        Raises:
            DictionaryError: the file cannot be read or is not a dictionary.
        """
        path = Path(path)
        try:
            content = read_at_most(path, MAX_BYTES)
        except OSError as exc:
            raise DictionaryError(
                f"cannot read the dictionary {path}: {exc.strerror or exc}. Create one with `asl-triton teach`"
            ) from exc
        if content is None:
            raise DictionaryError(f"the dictionary {path} is larger than {MAX_BYTES // 2**20} MiB")
        return cls.from_bytes(content, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "SignDictionary":
        """Parse the output of `to_bytes`. Error messages refer to it by `name`.

        Raises:
            DictionaryError: it is damaged or not a dictionary.
        """
        try:
            tensors = safetensors.numpy.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            metadata = json.loads(header["__metadata__"][METADATA])
            return cls._parse(metadata, tensors[VECTORS].astype(np.float32), tensors[ENERGIES])
        except (SafetensorError, ContractError, LookupError, TypeError, ValueError, RecursionError) as exc:
            raise DictionaryError(
                f"{name} is not a dictionary of signs, or is damaged: create one with `asl-triton teach`"
            ) from exc

    @classmethod
    def _parse(
        cls, metadata: Mapping[str, Any], vectors: Vector, energies: npt.NDArray[np.float32]
    ) -> "SignDictionary":
        """Build a dictionary from a file's untrusted content."""
        if metadata["format"] != FORMAT:
            raise DictionaryError(f"dictionary format {metadata['format']!r:.20} is unsupported: expected {FORMAT}")
        model = TaughtModel(*(str(metadata["model"][field.name]) for field in fields(TaughtModel)))
        Preset.from_json(model.preset)
        entries = metadata["examples"]
        if vectors.ndim != 2 or not (len(vectors) == len(energies) == len(entries)):
            raise ValueError("the file does not have exactly one embedding per example")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(energies).all() and np.isfinite(lengths).all() and (lengths > 0).all()):
            raise ValueError("an embedding is zero or not finite")
        dictionary = cls(model)
        dictionary._replace(
            [
                Example(
                    check_gloss(str(entry["gloss"])),
                    Embedding(vector, float(energy)),
                    str(entry["source"])[:MAX_SOURCE],
                    str(entry["added"]),
                )
                for entry, vector, energy in zip(entries, vectors / lengths, energies, strict=True)
            ]
        )
        return dictionary

    def _append(self, example: Example) -> Example:
        vector, count = example.embedding.vector, len(self._examples)
        width = self._rows.shape[1] if count else vector.size
        if vector.shape != (width,) or not np.isfinite(vector).all():
            raise DictionaryError(f"the embedding of {example.source or example.gloss!r} is not one of this model's")
        if known := self._find_same(example.embedding):
            clip = example.source or "the clip"
            if known.gloss == example.gloss:
                raise DictionaryError(f"{clip} is an example of {known.gloss!r} already: record the sign again")
            raise DictionaryError(
                f"{clip} is an example of {known.gloss!r} already, so it cannot be one of {example.gloss!r}: remove it "
                "there first"
            )
        if count == len(self._rows):
            grown = np.zeros((max(2 * count, 16), width), np.float32)
            grown[:count] = self._rows[:count] if count else 0
            self._rows = grown
        self._rows[count] = vector
        self._examples.append(example)
        self._classifier = None
        return example

    def _replace(self, examples: list[Example]) -> None:
        self._examples, self._classifier = examples, None
        vectors = [example.embedding.vector for example in examples]
        self._rows = np.array(vectors, np.float32).reshape(len(vectors), -1 if vectors else 0)

    def _find_same(self, embedding: Embedding) -> Example | None:
        """Return the example of the same clip, None if there is none."""
        if not self._examples:
            return None
        similarities = self.vectors() @ embedding.vector
        best = int(np.argmax(similarities))
        return self._examples[best] if similarities[best] > SAME else None

    def _list_glosses(self) -> str:
        shown = ", ".join(self.glosses[:5]) or "no signs"
        return shown + (f" and {len(self) - 5:,} more" if len(self) > 5 else "")


def check_gloss(gloss: str) -> str:
    """Return the gloss without leading and trailing spaces.

    Raises:
        DictionaryError: it is empty, longer than `MAX_NAME`, or has unprintable characters.
    """
    name = gloss.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise DictionaryError(
            f"{name[:MAX_NAME]!r} is not a valid name for a sign: use 1 to {MAX_NAME} printable characters"
        )
    return name
