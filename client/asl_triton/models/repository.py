"""Our models in model repositories, read from their folders: for what runs in the server and cannot ask it."""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from asl_triton.errors import ContractError, LabelsError
from asl_triton.labels import read_labels
from asl_triton.models.golden import GoldenAnswer
from asl_triton.models.served import FRAMES, PRESET_PARAMETER, ServedModel, check_tensors
from asl_triton.presets import Preset
from asl_triton.results import Logits
from asl_triton.transport.base import ModelDescription, TensorSpec

State = tuple[tuple[int, int, int] | None, ...]

CONFIG, LABELS, GOLDEN = "config.pbtxt", "labels.txt", "golden.npz"
# How far an answer to the golden clip may be from the folder's, in parts of the spread of its logits, and still be
# that network's: another machine's kernels and bfloat16 move it by some percent, other weights by about all of it.
SAME_NETWORK = 0.15


@dataclass(frozen=True)
class ModelOnDisk:
    """A model as its folder describes it; `golden` is None where the folder has no golden answer."""

    served: ServedModel
    golden: GoldenAnswer | None

    def is_compatible_with(self, other: "ModelOnDisk") -> bool:
        """Whether an answer means the same of both: they take the same frames, score alike and name alike."""
        ours, theirs = self.served, other.served
        return (ours.preset, ours.labels, ours.datatype) == (theirs.preset, theirs.labels, theirs.datatype)

    def matches_golden(self, logits: Logits) -> bool:
        """Whether these logits of the golden clip are this model's, as far as one can tell."""
        if self.golden is None or logits.shape != self.golden.served_logits.shape:
            return False
        known = self.golden.served_logits
        allowed = max(self.golden.tolerance, SAME_NETWORK * float(known.max() - known.min()))
        return bool(np.abs(logits - known).max() <= allowed)


class ModelRepository:
    """The models in `repositories`; a folder is read again when one of its files is another."""

    def __init__(self, repositories: Sequence[Path]) -> None:
        self._repositories = tuple(repositories)
        self._read: dict[Path, tuple[State, ModelOnDisk]] = {}

    def names(self) -> list[str]:
        """The folders that hold a model, sorted. One that is damaged counts."""
        return sorted(self._folders())

    def read(self, name: str) -> ModelOnDisk | None:
        """What the folder `name` describes, or None where there is no model of that name.

        Raises:
            ContractError, LabelsError: the folder is not whole, or not what asl-triton can talk to.
        """
        folder = self._folders().get(name)
        if folder is None:
            return None
        state = fingerprint_folder(folder)
        known = self._read.get(folder)
        if known is None or known[0] != state:
            known = self._read[folder] = (state, read_folder(folder))
        return known[1]

    def _folders(self) -> dict[str, Path]:
        """The models' folders by name."""
        found: dict[str, Path] = {}
        for repository in self._repositories:
            with suppress(OSError):
                for entry in os.scandir(repository):
                    if not entry.name.startswith(".") and self._is_model_folder(Path(entry.path)):
                        found.setdefault(entry.name, Path(entry.path))
        return found

    def _is_model_folder(self, folder: Path) -> bool:
        """Whether the folder's config has our preset."""
        known = self._read.get(folder)
        if known is not None and known[0] == fingerprint_folder(folder):
            return True
        try:
            return PRESET_PARAMETER in (folder / CONFIG).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False


def fingerprint_folder(folder: Path) -> State:
    """What is another as soon as somebody writes the folder anew: identity, size and last change of its files."""
    state: list[tuple[int, int, int] | None] = []
    for name in (CONFIG, LABELS, GOLDEN):
        try:
            status = (folder / name).stat()
            state.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            state.append(None)
    return tuple(state)


def read_folder(folder: Path) -> ModelOnDisk:
    """A model from its folder.

    Raises:
        ContractError, LabelsError: as `Catalog.read` does.
    """
    description = read_description(folder)
    num_classes = check_tensors(description, str(folder))
    labels = read_labels(folder / LABELS)
    if len(labels) != num_classes:
        raise LabelsError(f"{folder / LABELS} names {len(labels)} glosses for {num_classes} classes: export it again")
    parameters = description.parameters
    served = ServedModel(
        name=folder.name,
        version=description.version,
        preset=Preset.from_json(parameters[PRESET_PARAMETER]),
        labels=labels,
        datatype=description.inputs[FRAMES].datatype,
        precision=parameters.get("asl_triton.precision", "unknown"),
        checkpoint_sha256=parameters.get("asl_triton.checkpoint_sha256", "unknown"),
        exporter=parameters.get("asl_triton.exporter", "unknown"),
    )
    return ModelOnDisk(served, GoldenAnswer.load(folder / GOLDEN) if (folder / GOLDEN).exists() else None)


def read_description(folder: Path) -> ModelDescription:
    """What a server that serves this folder says of the model, as far as the folder tells."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        versions = [int(entry.name) for entry in os.scandir(folder) if re.fullmatch(r"[1-9]\d*", entry.name)]
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise ContractError(f"cannot read {folder / CONFIG}: {exc}. Export the model again") from exc
    batch_axis = (-1,) if config.max_batch_size else ()

    def specs(tensors: Iterable[Any]) -> dict[str, TensorSpec]:
        name_of = model_config_pb2.DataType.Name
        return {t.name: TensorSpec(name_of(t.data_type).removeprefix("TYPE_"), (*batch_axis, *t.dims)) for t in tensors}

    return ModelDescription(
        name=folder.name,
        version=str(max(versions, default="")),
        inputs=specs(config.input),
        outputs=specs(config.output),
        parameters={key: value.string_value for key, value in config.parameters.items()},
        labeled=frozenset(output.name for output in config.output if output.label_filename),
        max_batch_size=config.max_batch_size,
    )
