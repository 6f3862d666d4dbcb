"""Writes what fine-tuning leaves on disk, always atomically: bundle, `metrics.csv`, and the state to resume from."""

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from asl_triton.errors import CheckpointError
from asl_triton.evaluation.metrics import format_accuracy
from asl_triton.files import atomic_write
from asl_triton.models.card import ModelCard
from asl_triton.presets import Preset
from asl_triton_export.bundle import write_bundle
from asl_triton_export.finetune.data import OnStep
from asl_triton_export.finetune.module import FineTuning, schedule_learning_rate
from asl_triton_export.i3d import I3D

TRAINING = "training"  # subfolder of the bundle with the state to resume from; removed at the end
STATE = "last.ckpt"


@dataclass(frozen=True)
class Epoch:
    """One row of `metrics.csv`. Losses are means over clips; top-1 and top-5 are shares of the held-out clips."""

    epoch: int  # from 1
    train_loss: float
    held_out_loss: float
    held_out_top1: float
    held_out_top5: float
    learning_rate: float
    seconds: float


def find_best(epochs: list[Epoch]) -> Epoch:
    """Return the epoch whose network is kept: the first one with the lowest held-out loss."""
    return min(epochs, key=lambda row: row.held_out_loss)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's state atomically, so that a kill or a full disk leaves the previous one intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # torch.save would hide that the disk is full behind an unrelated error
        torch.save(checkpoint, content)
        with atomic_write(Path(path)) as file:
            file.write(content.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as exc:  # a damaged zip or pickle can raise nearly anything
            raise CheckpointError(
                f"{path} is damaged, so this run cannot be resumed: delete its folder to start over, or export the "
                "network that is already in it"
            ) from exc
        return state


class CheckpointCallback(pl.Callback):
    """After each epoch, writes its row, the bundle if it is the best so far, and the state; then decides when to stop.

    The learning rate and early stopping depend only on the rows, which are part of the state.
    """

    def __init__(
        self,
        folder: Path,
        glosses: tuple[str, ...],
        preset: Preset,
        card: ModelCard,
        about: dict[str, Any],  # the settings, for metrics.json
        rate: float,
        patience: int,
        on_step: OnStep,
        on_epoch: Callable[[Epoch], None],
    ) -> None:
        self.folder, self.glosses, self.preset, self.card, self.about = folder, glosses, preset, card, about
        self.base_rate, self.patience, self.on_step, self.on_epoch = rate, patience, on_step, on_epoch
        self.state = folder / TRAINING / STATE
        self.epochs: list[Epoch] = []
        self.resumed_after = 0
        self.began_s = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [dataclasses.astuple(row) for row in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [Epoch(*row) for row in state_dict["epochs"]]
        self.resumed_after = len(self.epochs)

    @property
    def is_enough(self) -> bool:
        """Whether the held-out loss has not fallen for `patience` epochs."""
        return bool(self.epochs) and len(self.epochs) - find_best(self.epochs).epoch >= self.patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FineTuning)
        pl_module.rate = schedule_learning_rate([row.held_out_loss for row in self.epochs], self.base_rate)
        trainer.should_stop = self.is_enough  # the run may have been killed after its last epoch
        self.began_s = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            progress = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self.on_step(f"Epoch {len(self.epochs) + 1}", progress, int(trainer.num_training_batches))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FineTuning)
        train_loss, loss, top1, top5 = pl_module.finish_epoch()
        seconds, self.began_s = time.monotonic() - self.began_s, time.monotonic()
        row = Epoch(len(self.epochs) + 1, train_loss, loss, top1, top5, pl_module.rate, round(seconds, 2))
        self.epochs.append(row)
        pl_module.rate = schedule_learning_rate([row.held_out_loss for row in self.epochs], self.base_rate)
        if trainer.is_global_zero:
            if find_best(self.epochs) is row:
                self.write_bundle(pl_module.net)
            self.write_table()
        trainer.save_checkpoint(self.state)
        trainer.should_stop = trainer.should_stop or self.is_enough
        if trainer.is_global_zero:
            self.on_epoch(row)

    def write_bundle(self, net: I3D) -> None:
        """Write the current network, which is the best so far."""
        write_bundle(self.folder, net.state_dict(), self.glosses, self.preset, self.card)
        metrics = {"best": dataclasses.asdict(find_best(self.epochs)), **self.about}
        with atomic_write(self.folder / "metrics.json") as file:
            file.write(f"{json.dumps(metrics, indent=1, ensure_ascii=False)}\n".encode())

    def write_table(self) -> None:
        """Write `metrics.csv`, one row per epoch."""
        table = io.StringIO()
        writer = csv.DictWriter(table, [field.name for field in dataclasses.fields(Epoch)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in self.epochs)
        with atomic_write(self.folder / "metrics.csv") as file:
            file.write(table.getvalue().encode())

    def describe_rest(self) -> str:
        """Describe what is on disk when training ends early."""
        if not self.epochs:
            return "No epoch was finished, so no network was written"
        best = find_best(self.epochs)
        top1 = format_accuracy(best.held_out_top1, self.about["num_held_out_clips"])
        return f"The best network so far (epoch {best.epoch}, held-out top-1 {top1}) is in {self.folder}"
