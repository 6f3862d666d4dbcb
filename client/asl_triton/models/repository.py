"""Our models in model repositories, read from their folders: for what runs in the server and cannot ask it."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from asl_triton.errors import AslTritonError, ContractError, LabelsError
from asl_triton.labels import read_labels
from asl_triton.models.golden import GoldenAnswer
from asl_triton.models.served import PRESET_PARAMETER, ServedModel, count_classes
from asl_triton.results import Logits
from asl_triton.transport.base import ModelDescription, TensorSpec

CONFIG, LABELS, GOLDEN = "config.pbtxt", "labels.txt", "golden.npz"
# How far an answer to the golden clip may be from the folder's, in parts of the spread of its logits, and still be
# that network's: another machine's kernels and bfloat16 move it by some percent, other weights by about all of it.
SAME_NETWORK = 0.15


@dataclass(frozen=True)
class ModelOnDisk:
    """A model as its folder describes it; `golden` is None where the folder has no golden answer."""

    served: ServedModel
    golden: GoldenAnswer | None

    def matches_golden(self, logits: Logits) -> bool:
        """Whether these logits of the golden clip are this model's, as far as one can tell."""
        if self.golden is None or logits.shape != self.golden.served_logits.shape:
            return False
        known = self.golden.served_logits
        allowed = max(self.golden.tolerance, SAME_NETWORK * float(known.max() - known.min()))
        return bool(np.abs(logits - known).max() <= allowed)


def read_repositories(repositories: Sequence[Path]) -> dict[str, ModelOnDisk | AslTritonError]:
    """The models in these folders by name, sorted; where a model's folder is damaged, the error that says so.

    Of two folders with one name the first counts. A repository that is not a folder here is skipped.
    """
    found: dict[str, ModelOnDisk | AslTritonError] = {}
    for folder in (folder for repository in repositories if repository.is_dir() for folder in repository.iterdir()):
        if folder.name.startswith(".") or folder.name in found or not is_model_folder(folder):
            continue
        try:
            found[folder.name] = read_folder(folder)
        except AslTritonError as exc:
            found[folder.name] = exc
    return dict(sorted(found.items()))


def is_model_folder(folder: Path) -> bool:
    """Whether a folder's config has our preset."""
    try:
        return PRESET_PARAMETER in (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def read_folder(folder: Path) -> ModelOnDisk:
    """A model from its folder.

    Raises:
        ContractError, LabelsError: the folder is not whole, or not what asl-triton can talk to.
    """
    description = read_description(folder)
    served = ServedModel.from_description(description, str(folder))
    labels, num_classes = read_labels(folder / LABELS), count_classes(description)
    if len(labels) != num_classes:
        raise LabelsError(f"{folder / LABELS} names {len(labels)} glosses for {num_classes} classes: export it again")
    # Last: if the folder is replaced meanwhile, its golden answer does not fit the model that was loaded before.
    golden = GoldenAnswer.load(folder / GOLDEN) if (folder / GOLDEN).exists() else None
    return ModelOnDisk(replace(served, labels=labels), golden)


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
