"""Lightning modules for training and for computing features, and the loss."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asl_triton.errors import CheckpointError
from asl_triton.files import atomic_write
from asl_triton.presets import Preset
from asl_triton_export.finetune.recipe import Train
from asl_triton_export.i3d import I3D, Output, average_neighbors, normalize, pool_steps

LAST_BLOCKS = ("Mixed_5b", "Mixed_5c")
FRAMES_PER_POSITION = 8
# train_i3d.py: `ReduceLROnPlateau(optimizer, 'min', patience=5, factor=0.3)` on the held-out loss.
PLATEAU_EPOCHS = 5
PLATEAU_FACTOR = 0.3
PLATEAU_LEAST = 1e-4  # PyTorch's default: smaller relative improvements do not count
TOP = 5


class DivergedError(CheckpointError):
    """The loss became NaN or infinite."""


def compute_loss(net: I3D, output: Output, class_ids: Tensor, preset: Preset) -> Tensor:
    """Compute the loss of clips whose classes are `class_ids` (N,).

    Presets with sigmoid scores use the loss of WLASL's train_i3d.py: half localization (the step logits, interpolated
    linearly to frames, each against the clip's gloss) and half classification (their maximum over time), both as binary
    cross-entropy averaged over classes. Presets with softmax scores use the cross-entropy of the logits as served.
    """
    step_logits = output.step_logits.float()
    if preset.score == "softmax":
        return F.cross_entropy(pool_steps(net, step_logits, output.features, preset).float(), class_ids)
    num_frames = FRAMES_PER_POSITION * output.features.shape[2]
    frame_logits = F.interpolate(step_logits.transpose(1, 2), num_frames, mode="linear")  # (N, S, C) -> (N, C, T)
    wanted = F.one_hot(class_ids, net.num_classes).float()
    localization = F.binary_cross_entropy_with_logits(frame_logits, wanted[..., None].expand_as(frame_logits))
    classification = F.binary_cross_entropy_with_logits(frame_logits.amax(dim=2), wanted)
    return (localization + classification) / 2


def forward_clips(net: I3D, clips: Tensor, preset: Preset) -> Output:
    """Run the network on frames, uint8 (N, T, 224, 224, 3), or on its own features, (N, F, T/8)."""
    if clips.dtype == torch.uint8:
        return net(normalize(clips, preset))  # type: ignore[no-any-return]
    step_logits = net.logits(net.dropout(average_neighbors(clips))[..., None, None])  # (N, C, S, 1, 1)
    return Output(step_logits[..., 0, 0].transpose(1, 2), clips)


def schedule_learning_rate(losses: list[float], base: float) -> float:
    """Return the learning rate after epochs with these held-out losses, lowered after every six without improvement."""
    rate, best, waited = base, math.inf, 0
    for loss in losses:
        if loss < best * (1 - PLATEAU_LEAST):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > PLATEAU_EPOCHS:
            rate, waited = rate * PLATEAU_FACTOR, 0
    return rate


class FineTuning(pl.LightningModule):
    """Trains the head of an I3D, its last blocks, or all of it. The rest is frozen, including BatchNorm statistics."""

    def __init__(self, net: I3D, preset: Preset, train: Train, weight_decay: float, seed: int) -> None:
        super().__init__()
        self.net, self.preset, self.weight_decay, self.seed = net, preset, weight_decay, seed
        parts: dict[str, list[nn.Module]] = {
            "head": [net.logits],
            "last": [*(net.get_submodule(block) for block in LAST_BLOCKS), net.logits],
            "all": [net],
        }
        self.trained = parts[train]
        net.requires_grad_(False)
        for module in self.trained:
            module.requires_grad_(True)
        self.strict_loading = False  # the state has only what is trained
        self.rate = math.nan  # set before each epoch
        self.begin_sums()

    def begin_sums(self) -> None:
        """Reset the sums at the start of an epoch."""
        self.train_sums = torch.zeros(2)  # loss, clips
        self.held_out_sums = torch.zeros(4)  # loss, top-1, top-5, clips

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop frozen parameters from the state; they come from the original checkpoint."""
        trained = {id(tensor) for module in self.trained for tensor in module.state_dict(keep_vars=True).values()}
        kept = {name for name, tensor in self.state_dict(keep_vars=True).items() if id(tensor) in trained}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Create Adam, as train_i3d.py does; the rate is set before each epoch."""
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=1e-4, weight_decay=self.weight_decay)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Set rate, modes, and seed at the start of an epoch, so that a resumed run draws the same random numbers."""
        if batch_idx:
            return
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rate
        self.net.eval()
        for module in (*self.trained, self.net.dropout):
            module.train()
        torch.manual_seed(self.seed + 1000 * self.current_epoch + self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch of segments, or of their features.

        Raises:
            DivergedError: the loss is not finite.
        """
        clips, class_ids = batch
        loss = compute_loss(self.net, forward_clips(self.net, clips, self.preset), class_ids, self.preset)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(f"the loss became {value} in epoch {self.current_epoch + 1}, step {batch_idx + 1}")
        self.train_sums += torch.tensor([value * len(class_ids), len(class_ids)])
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Compute the loss and rank of one clip, pooled over steps and windows as it will be served."""
        (windows, *_), class_ids, weight = batch
        outputs = [forward_clips(self.net, window[None], self.preset) for window in windows]
        losses = torch.stack([compute_loss(self.net, output, class_ids, self.preset) for output in outputs])
        logits = torch.cat([pool_steps(self.net, o.step_logits, o.features, self.preset).float() for o in outputs])
        pooled = logits.amax(dim=0) if self.preset.window_pooling == "max" else logits.mean(dim=0)
        better = int((pooled > pooled[class_ids[0]]).sum())
        sums = torch.tensor([float(losses.mean()), float(better == 0), float(better < TOP), 1.0])
        self.held_out_sums += float(weight[0]) * sums

    def finish_epoch(self) -> tuple[float, float, float, float]:
        """Training loss, held-out loss, top-1 and top-5 of the epoch, over all processes. Begins the next epoch's sums.

        Raises:
            DivergedError: the held-out loss is not finite.
        """
        sums = torch.cat([self.train_sums, self.held_out_sums]).to(self.device)
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        self.begin_sums()
        (train_loss, train_count), (loss, top1, top5, count) = sums[:2].tolist(), sums[2:].tolist()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss of the held-out clips became {loss / count} in epoch {self.current_epoch + 1}"
            )
        return train_loss / max(train_count, 1), loss / count, top1 / count, top5 / count


class FeatureExtractor(pl.LightningModule):
    """Computes the features of clips once and writes them, one file per clip."""

    def __init__(self, net: I3D, preset: Preset, on_clip: Callable[[], None]) -> None:
        super().__init__()
        self.net, self.preset, self.on_clip = net.eval(), preset, on_clip

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> None:
        """Process one clip, one segment or window at a time, so that features do not depend on the batch."""
        (clips, *_), (path, *_) = batch
        if len(clips):
            features = [
                forward_clips(self.net, clip[None], self.preset).features[0].float().cpu().numpy() for clip in clips
            ]
            with atomic_write(Path(path), shared=True) as file:
                np.save(file, np.stack(features))
        self.on_clip()
