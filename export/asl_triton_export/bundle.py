"""Bundles: folders of `weights.*`, `labels.txt`, `preset.json` and `card.json`, for `asl-triton export` and `finetune`.

`asl-triton fetch`, `asl-triton finetune` and the training of the demo checkpoint write them. Those of earlier versions
have no `card.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from asl_triton.errors import CheckpointError
from asl_triton.files import atomic_write, write_text
from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton.presets import Preset

DEMO = "demo"  # names the checkpoint that comes with asl-triton: the demo signer's twenty signs
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar")
WEIGHTS, LABELS, PRESET, CARD = "weights.safetensors", "labels.txt", "preset.json", "card.json"


@dataclass(frozen=True)
class CheckpointBundle:
    """A file of weights, with its labels, its preset and its card where it comes with them."""

    weights: Path
    labels: Path | None = None
    preset: Preset | None = None
    card: ModelCard = EMPTY_CARD


def open_bundle(path: Path) -> CheckpointBundle:
    """Look at a bundle folder or a bare file of weights, without loading it; `demo` is the one that comes with us.

    Raises:
        CheckpointError: there is no such path, or the folder has no `weights.*` or several.
        ContractError: its `preset.json` is not a preset, or its `card.json` not a card.
    """
    if str(path) == DEMO:  # ./demo is a folder of that name
        path = Path(__file__).parent / "demo_checkpoint"
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint {path}: fetch one (asl-triton fetch), name its file, or take the one that comes "
            f"with asl-triton ({DEMO})"
        )
    if not path.is_dir():
        return CheckpointBundle(path)
    weights = sorted(p for p in path.glob("weights.*") if p.suffix in WEIGHT_SUFFIXES)
    if len(weights) != 1:
        found = ", ".join(p.name for p in weights) or "none"
        raise CheckpointError(
            f"the folder {path} is no checkpoint bundle: it must hold one file of weights "
            f"(weights.safetensors or weights.pt), and these were found: {found}"
        )
    labels, preset = path / LABELS, path / PRESET
    return CheckpointBundle(
        weights[0],
        labels if labels.exists() else None,
        Preset.from_json(preset.read_text(encoding="utf-8")) if preset.exists() else None,
        ModelCard.read(path / CARD),
    )


def write_bundle(
    folder: Path, state: Mapping[str, Tensor], labels: Sequence[str], preset: Preset, card: ModelCard
) -> None:
    """Write a bundle of an I3D state dict into `folder`, making it; each file is whole or not there.

    BatchNorm's counters are left out: nothing reads them.

    Raises:
        OSError: a file cannot be written; the one that was there before is kept.
    """
    write_description(folder, labels, preset, card)
    weights = {
        key: tensor.detach().cpu().contiguous()
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save(weights))


def write_description(folder: Path, labels: Sequence[str], preset: Preset, card: ModelCard) -> None:
    """Write what a bundle has besides its weights.

    Raises:
        OSError: a file cannot be written; the one that was there before is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in ((LABELS, labels), (PRESET, [preset.to_json()]), (CARD, [card.to_json()])):
        with atomic_write(folder / name) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())


def write_threshold(folder: Path, min_confidence: float) -> Path:
    """Write the confidence below which answers are unsure into a bundle's card; returns the card's path.

    Raises:
        AslTritonError: the folder is not a bundle, or cannot be written.
    """
    bundle = open_bundle(folder)
    path = bundle.weights.parent / CARD
    return write_text(path, f"{replace(bundle.card, min_confidence=min_confidence).to_json()}\n")
