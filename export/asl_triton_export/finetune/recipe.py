"""How to train and where, as data."""

from dataclasses import dataclass
from typing import Any, Literal

from asl_triton_export.formats import fastest_precision

Train = Literal["head", "last", "all"]
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
# WLASL2000 was trained with 1e-4, WLASL100 with 1e-3; a head alone is ten times less likely to overshoot.
LEARNING_RATES: dict[Train, float] = {"head": 1e-2, "last": 1e-4, "all": 1e-4}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The defaults are WLASL's; a learning rate of None is `LEARNING_RATES`'s."""

    train: Train = "all"
    segment_frames: int = 64
    flip: bool = True
    batch_size: int = 6
    accumulate: int = 1  # batches a step
    learning_rate: float | None = None
    weight_decay: float = 1e-8
    epochs: int = 100
    patience: int = 20  # epochs without a lower held-out loss
    views: int = 4  # segments of a clip that head-only training takes turns with
    held_out: float = 0.2  # of each gloss's clips in a folder
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class HardwareOptions:
    """Where to train, as Lightning's Trainer takes it."""

    accelerator: str = "auto"
    devices: str = "auto"
    num_nodes: int = 1
    workers: int | None = None  # processes that decode; None: none on a CPU, else up to eight


def choose_precision(recipe: Recipe, machines: HardwareOptions) -> Any:
    """Lightning's name of the precision; "auto" chooses mixed precision where this machine is faster with it."""
    precision = recipe.precision
    if precision == "auto":
        precision = fastest_precision()
        if precision == "fp16" and machines.accelerator == "cpu":
            precision = "fp32"
    return PRECISIONS[precision]
