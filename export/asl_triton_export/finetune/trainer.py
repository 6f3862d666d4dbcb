"""Sets up Lightning's trainer and data loaders, and translates the errors that may end training."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.presets import Preset
from asl_triton_export.finetune.callbacks import AtomicCheckpointIO, CheckpointCallback
from asl_triton_export.finetune.data import Clips, OnStep
from asl_triton_export.finetune.module import DivergedError, FeatureExtractor
from asl_triton_export.finetune.recipe import HardwareOptions, Recipe, choose_precision
from asl_triton_export.finetune.sampling import (
    CachedFeatures,
    EpochSampler,
    FeatureInputs,
    Segments,
    SegmentSampler,
    WholeClips,
)
from asl_triton_export.i3d import I3D


def make_trainer(recipe: Recipe, machines: HardwareOptions, callback: CheckpointCallback) -> pl.Trainer:
    """Create a Lightning trainer that prints and writes nothing itself."""
    try:
        return pl.Trainer(
            accelerator=machines.accelerator,
            devices=machines.devices,
            num_nodes=machines.num_nodes,
            precision=choose_precision(recipe, machines),
            max_epochs=recipe.epochs,
            accumulate_grad_batches=recipe.accumulate,
            callbacks=[callback],
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as exc:
        raise AslTritonError(
            f"cannot train on accelerator {machines.accelerator!r}, devices {machines.devices!r}: {exc}"
        ) from exc


def make_loaders(
    trainer: pl.Trainer,
    net: I3D,
    clips: Clips,
    preset: Preset,
    recipe: Recipe,
    machines: HardwareOptions,
    training: Path,
    on_step: OnStep,
    is_imprinted: bool = False,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Create loaders for training and held-out clips, or for their cached features if only the head is trained.

    Imprinting uses all views of a clip in a single epoch; otherwise each epoch takes one.
    """
    sampler = SegmentSampler(preset, recipe.segment_frames, recipe.flip, recipe.seed)
    training_set: Any = Segments(clips.train, sampler)
    held_out_set: Any = WholeClips(clips.held_out, preset)
    workers = machines.workers
    if workers is None:
        workers = 0 if isinstance(trainer.accelerator, pl.accelerators.CPUAccelerator) else min(8, os.cpu_count() or 1)
    views = None
    if recipe.train == "head":
        views = recipe.views if is_imprinted else min(recipe.views, recipe.epochs)
        cache = training / "features"
        cache.mkdir(exist_ok=True)
        both = FeatureInputs(clips.train, cache, preset, sampler, views), FeatureInputs(clips.held_out, cache, preset)
        training_set, held_out_set = cache_features(trainer, net, preset, both, workers, on_step)
        workers = 0
    rank, world = trainer.global_rank, trainer.world_size
    turns = EpochSampler(len(clips.train), rank, world, recipe.seed, views)
    return (
        DataLoader(training_set, recipe.batch_size, sampler=turns, num_workers=workers),
        DataLoader(held_out_set, 1, sampler=EpochSampler(len(clips.held_out), rank, world), num_workers=workers),
    )


def cache_features(
    trainer: pl.Trainer,
    net: I3D,
    preset: Preset,
    both: tuple[FeatureInputs, FeatureInputs],
    workers: int,
    on_step: OnStep,
) -> tuple[CachedFeatures, CachedFeatures]:
    """Compute the frozen body's features of each clip, unless an earlier run already has."""
    total, done = sum(map(len, both)), 0

    def count() -> None:
        nonlocal done
        done = min(done + trainer.world_size, total)
        on_step("Computing features", done, total)

    for views in both:
        sampler = range(trainer.global_rank, len(views), trainer.world_size)
        loader = DataLoader(views, sampler=sampler, num_workers=workers)
        trainer.predict(FeatureExtractor(net, preset, count), loader, return_predictions=False)
        trainer.strategy.barrier()
    return CachedFeatures(both[0]), CachedFeatures(both[1])


@contextmanager
def translate_training_errors(folder: Path, callback: CheckpointCallback) -> Iterator[None]:
    """Keep Lightning quiet inside the block, and turn an error that ends training into a sentence."""
    loud = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loud]
    interrupt = signal.getsignal(signal.SIGINT)
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning gives advice as warnings
            yield
    except DivergedError as exc:
        raise AslTritonError(
            f"{exc}, so training stopped. {callback.describe_rest()}. Try a lower --lr or --precision fp32 in another "
            "folder"
        ) from exc
    except VideoError as exc:
        raise VideoError(f"{last_line(exc)} (it was readable before training). {callback.describe_rest()}") from exc
    except OSError as exc:
        raise AslTritonError(
            f"cannot write {folder}: {exc.strerror or exc}. {callback.describe_rest()}; run the same command to resume"
        ) from exc
    except SIGTERMException as exc:
        raise AslTritonError(
            f"training was stopped. {callback.describe_rest()}; run the same command to resume"
        ) from exc
    except SystemExit as exc:
        if isinstance(exc.__context__, KeyboardInterrupt):  # Lightning turns it into SystemExit
            signal.signal(signal.SIGINT, interrupt)
            raise KeyboardInterrupt from exc
        raise
    except torch.OutOfMemoryError as exc:
        raise AslTritonError(
            "not enough memory: try a lower --batch-size with --accumulate to match, or --train head. "
            f"{callback.describe_rest()}"
        ) from exc
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


def last_line(exc: Exception) -> str:
    """Return an exception's message without the traceback that a worker process adds."""
    return str(exc).rstrip().rpartition("\n")[2].rpartition("Error: ")[2]
