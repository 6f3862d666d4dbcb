"""Bundles: folders of `weights.*`, `labels.txt`, `preset.json` and `card.json`, for `asl-triton export` and `finetune`.

They are written by `asl-triton fetch`, `asl-triton finetune`, and the training of the demo checkpoint. Bundles from
earlier versions have no `card.json`.
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

DEMO = "demo"  # the checkpoint that ships with asl-triton: the demo signer's twenty signs
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar")
WEIGHTS, LABELS, PRESET, CARD = "weights.safetensors", "labels.txt", "preset.json", "card.json"


@dataclass(frozen=True)
class CheckpointBundle:
    """A weights file, plus its labels, preset, and card if it has them."""

    weights: Path
    labels: Path | None = None
    preset: Preset | None = None
    card: ModelCard = EMPTY_CARD


def open_bundle(path: Path) -> CheckpointBundle:
    """Inspect a bundle folder or a bare weights file without loading it; `demo` is the bundle that ships with us.

    Raises:
        CheckpointError: the path does not exist, or the folder does not have exactly one `weights.*`.
        ContractError: `preset.json` or `card.json` is invalid.
    """
    if str(path) == DEMO:  # write ./demo for a folder of that name
        path = Path(__file__).parent / "demo_checkpoint"
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint {path}: download one (asl-triton fetch), give the path of its file, or use the "
            f"one that ships with asl-triton ({DEMO})"
        )
    if not path.is_dir():
        return CheckpointBundle(path)
    weights = sorted(p for p in path.glob("weights.*") if p.suffix in WEIGHT_SUFFIXES)
    if len(weights) != 1:
        found = ", ".join(p.name for p in weights) or "none"
        raise CheckpointError(
            f"the folder {path} is not a checkpoint bundle: it must contain one weights file (weights.safetensors or "
            f"weights.pt), but has: {found}"
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
    """Write a bundle of an I3D state dict to `folder`, creating it if needed. Each file is written atomically.

    BatchNorm's counters are dropped, since nothing reads them.

    Raises:
        OSError: a file is not writable; its previous version is kept.
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
    """Write a bundle's labels, preset, and card.

    Raises:
        OSError: a file is not writable; its previous version is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in ((LABELS, labels), (PRESET, [preset.to_json()]), (CARD, [card.to_json()])):
        with atomic_write(folder / name) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())


def write_threshold(folder: Path, min_confidence: float) -> Path:
    """Write the confidence below which answers are unsure into a bundle's card. Returns the card's path.

    Raises:
        AslTritonError: the folder is not a bundle, or is not writable.
    """
    bundle = open_bundle(folder)
    path = bundle.weights.parent / CARD
    return write_text(path, f"{replace(bundle.card, min_confidence=min_confidence).to_json()}\n")
