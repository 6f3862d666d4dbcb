"""What a fine-tuning leaves on disk, each file whole or not there: bundle, `metrics.csv`, the state to go on from."""

import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from safetensors.torch import save

from asl_triton.errors import CheckpointError
from asl_triton.presets import Preset
from asl_triton_export.finetune.data import OnStep
from asl_triton_export.finetune.module import FineTuning, schedule_learning_rate
from asl_triton_export.i3d import I3D

STATE = "last.ckpt"


@dataclass(frozen=True)
class Epoch:
    """A row of `metrics.csv`. Losses are means over clips, top-1 and top-5 shares of those held out."""

    epoch: int  # from 1
    train_loss: float
    held_out_loss: float
    held_out_top1: float
    held_out_top5: float
    learning_rate: float
    seconds: float


def find_best(epochs: list[Epoch]) -> Epoch:
    """The epoch whose network is kept: the least held-out loss, of equals the first."""
    return min(epochs, key=lambda row: row.held_out_loss)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's state, written beside its place and moved there: a kill or a full disk leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as exc:  # what a damaged file makes the readers of zips and pickles raise
            raise CheckpointError(
                f"{path} is damaged, so this fine-tuning cannot go on: remove its folder to begin anew, or export the "
                "network that it has left"
            ) from exc
        return state


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there; what could not be written is removed."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class BundleFiles:
    """The folder that `asl-triton export` takes: weights.safetensors, labels.txt, preset.json, metrics.json."""

    folder: Path
    glosses: tuple[str, ...]
    preset: Preset
    about: dict[str, Any]  # how it came about, for metrics.json

    def write(self, net: I3D, epochs: list[Epoch]) -> None:
        """The network as it is now, with what is known of it."""
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
        weights = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
        write_whole(self.folder / "labels.txt", "".join(f"{gloss}\n" for gloss in self.glosses).encode())
        write_whole(self.folder / "preset.json", f"{self.preset.to_json()}\n".encode())
        write_whole(self.folder / "weights.safetensors", save(weights))
        metrics = {"best": dataclasses.asdict(find_best(epochs)), **self.about}
        write_whole(self.folder / "metrics.json", f"{json.dumps(metrics, indent=1, ensure_ascii=False)}\n".encode())

    def write_table(self, epochs: list[Epoch]) -> None:
        """`metrics.csv`, a row an epoch."""
        table = io.StringIO()
        writer = csv.DictWriter(table, [field.name for field in dataclasses.fields(Epoch)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in epochs)
        write_whole(self.folder / "metrics.csv", table.getvalue().encode())


class CheckpointCallback(pl.Callback):
    """After each epoch: its row, the network if it is the best so far, the state, and whether it is enough.

    All that decides how it goes on (rate, patience) follows from the rows, which are part of the state.
    """

    def __init__(
        self,
        files: BundleFiles,
        state: Path,
        rate: float,
        patience: int,
        on_step: OnStep,
        on_epoch: Callable[[Epoch], None],
    ) -> None:
        self.files, self.state, self.base_rate, self.patience = files, state, rate, patience
        self.on_step, self.on_epoch = on_step, on_epoch
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
        """Whether the held-out loss has not fallen for as many epochs as patience lasts."""
        return bool(self.epochs) and len(self.epochs) - find_best(self.epochs).epoch >= self.patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FineTuning)
        pl_module.rate = schedule_learning_rate([row.held_out_loss for row in self.epochs], self.base_rate)
        trainer.should_stop = self.is_enough  # where the kill came between the last epoch and the end
        self.began_s = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            progress = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self.on_step(f"Epoch {len(self.epochs) + 1}", progress, int(trainer.num_training_batches))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FineTuning)
        train_loss, loss, top1, top5 = pl_module.results()
        seconds, self.began_s = time.monotonic() - self.began_s, time.monotonic()
        row = Epoch(len(self.epochs) + 1, train_loss, loss, top1, top5, pl_module.rate, round(seconds, 2))
        self.epochs.append(row)
        pl_module.rate = schedule_learning_rate([row.held_out_loss for row in self.epochs], self.base_rate)
        if trainer.is_global_zero:
            if find_best(self.epochs) is row:
                self.files.write(pl_module.net, self.epochs)
            self.files.write_table(self.epochs)
        trainer.save_checkpoint(self.state)
        trainer.should_stop = trainer.should_stop or self.is_enough
        if trainer.is_global_zero:
            self.on_epoch(row)

    def left(self) -> str:
        """What there is on disk of all this, for a message."""
        if not self.epochs:
            return "No epoch was finished, so no network was written"
        best = find_best(self.epochs)
        return (
            f"The best network so far (epoch {best.epoch}, held-out top-1 {best.held_out_top1:.1%}) is in "
            f"{self.files.folder}"
        )
