"""Reads our models from the folders of model repositories, for code that runs in the server and cannot query it."""

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
# How far an answer to the golden clip may be from the folder's, as a share of the spread of its logits, to still come
# from the same network. Another machine or bfloat16 moves it by a few percent, other weights by about 100 %.
SAME_NETWORK = 0.15


@dataclass(frozen=True)
class ModelOnDisk:
    """A model as its folder describes it. `golden` is None if the folder has no golden answer."""

    served: ServedModel
    golden: GoldenAnswer | None

    def matches_golden(self, logits: Logits) -> bool:
        """Return whether these logits of the golden clip are close enough to be this model's."""
        if self.golden is None or logits.shape != self.golden.served_logits.shape:
            return False
        known = self.golden.served_logits
        allowed = max(self.golden.tolerance, SAME_NETWORK * float(known.max() - known.min()))
        return bool(np.abs(logits - known).max() <= allowed)


def read_repositories(repositories: Sequence[Path]) -> dict[str, ModelOnDisk | AslTritonError]:
    """Read the models in these repositories, sorted by name. A damaged model folder gives an error instead of a model.

    If two folders have the same name, the first one counts. Repositories that are not local folders are skipped.
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
    """Return whether a folder's config has our preset."""
    try:
        return PRESET_PARAMETER in (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def read_folder(folder: Path) -> ModelOnDisk:
    """Read a model from its folder.

    Raises:
        ContractError, LabelsError: the folder is incomplete, or does not match asl-triton's contract.
    """
    description = read_description(folder)
    served = ServedModel.from_description(description, str(folder))
    labels, num_classes = read_labels(folder / LABELS), count_classes(description)
    if len(labels) != num_classes:
        raise LabelsError(f"{folder / LABELS} lists {len(labels)} glosses for {num_classes} classes: export it again")
    # Read last, so that if the folder is being replaced, the golden answer does not match the model loaded before.
    golden = GoldenAnswer.load(folder / GOLDEN) if (folder / GOLDEN).exists() else None
    return ModelOnDisk(replace(served, labels=labels), golden)


def read_description(folder: Path) -> ModelDescription:
    """Describe the model in this folder as a server would, as far as the folder shows."""
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
