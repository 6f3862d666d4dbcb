"""Hyperparameters and hardware options."""

from dataclasses import dataclass
from typing import Any, Literal

from asl_triton_export.formats import fastest_precision

Train = Literal["head", "last", "all"]
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
# WLASL2000 was trained with 1e-4, WLASL100 with 1e-3. Training the head alone tolerates a larger rate.
LEARNING_RATES: dict[Train, float] = {"head": 1e-2, "last": 1e-4, "all": 1e-4}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The defaults are WLASL's. A learning rate of None selects one from `LEARNING_RATES`."""

    train: Train = "all"
    segment_frames: int = 64
    flip: bool = True
    batch_size: int = 6
    accumulate: int = 1  # batches per optimizer step
    learning_rate: float | None = None
    weight_decay: float = 1e-8
    epochs: int = 100
    patience: int = 20  # epochs without a lower held-out loss
    views: int = 4  # segments per clip that head-only training cycles through
    held_out: float = 0.2  # share of each gloss's clips in a folder
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class HardwareOptions:
    """Where to train, in the terms of Lightning's Trainer."""

    accelerator: str = "auto"
    devices: str = "auto"
    num_nodes: int = 1
    workers: int | None = None  # decoding processes; None means 0 on a CPU and up to 8 otherwise


def choose_precision(recipe: Recipe, machines: HardwareOptions) -> Any:
    """Return Lightning's name for the precision; "auto" means mixed precision where it is faster."""
    precision = recipe.precision
    if precision == "auto":
        precision = fastest_precision()
        if precision == "fp16" and machines.accelerator == "cpu":
            precision = "fp32"
    return PRECISIONS[precision]
