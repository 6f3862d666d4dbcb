"""Fine-tuning: turns a checkpoint and labeled clips into a bundle for `asl-triton export`.

The recipe is WLASL's (Li et al. 2020; code/I3D/train_i3d.py and configfiles/asl2000.ini of dxli94/WLASL), extended by
frozen layers, a held-out split of your own clips, early stopping, and resuming after a kill. Lightning runs the loop
and takes care of devices and precision.
"""

import dataclasses
import json
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from asl_triton.errors import AslTritonError, CheckpointError
from asl_triton.evaluation.dataset import format_count
from asl_triton.files import atomic_write
from asl_triton.models.card import EMPTY_CARD, MAX_TEXT, ModelCard
from asl_triton.presets import Preset
from asl_triton_export.checkpoint import CLASSIFIER_KEY, Checkpoint
from asl_triton_export.finetune.callbacks import STATE, TRAINING, CheckpointCallback, Epoch, find_best
from asl_triton_export.finetune.data import Clips, OnStep, choose_clips
from asl_triton_export.finetune.imprinting import imprint_rows
from asl_triton_export.finetune.module import FineTuning
from asl_triton_export.finetune.recipe import LEARNING_RATES, HardwareOptions, Recipe
from asl_triton_export.finetune.sampling import CachedFeatures
from asl_triton_export.finetune.trainer import make_loaders, make_trainer, translate_training_errors
from asl_triton_export.i3d import I3D


@dataclass(frozen=True)
class FineTuneResult:
    """The result of a fine-tuning run."""

    folder: Path
    clips: Clips
    epochs: tuple[Epoch, ...]
    best: Epoch
    known: int  # glosses whose classifier rows came from the checkpoint
    resumed_after: int  # epochs; 0 if the run was not resumed
    is_main: bool  # False in the additional processes that Lightning starts; only the main one prints


def finetune(
    checkpoint: Checkpoint,
    known: Sequence[str] | None,
    preset: Preset,
    data: Path,
    folder: Path,
    *,
    videos: Path | None = None,
    labels: Sequence[str] | None = None,
    card: ModelCard = EMPTY_CARD,
    purpose: str | None = None,
    caveat: str | None = None,
    recipe: Recipe | None = None,
    machines: HardwareOptions | None = None,
    keep_known: bool = False,
    drop_empty: bool = False,
    on_clips: Callable[[Clips], None] = lambda clips: None,
    on_step: OnStep = lambda what, done, total: None,
    on_epoch: Callable[[Epoch], None] = lambda row: None,
) -> FineTuneResult:
    """Train `checkpoint`, whose glosses are `known`, on the clips in `data`, and write a bundle to `folder`.

    The new model's glosses are `labels`, or the sub-folders of `data` by default. Glosses that the checkpoint knows
    start from its classifier rows. `purpose` and `caveat` go into the new bundle; by default they are derived from the
    checkpoint's `card`. Calling this again with the same arguments resumes an interrupted run and produces the same
    network.

    Each gloss needs clips; `drop_empty` drops glosses without any. With `keep_known`, everything the checkpoint knows
    stays as it is, with or without clips, and the new glosses are imprinted in one epoch (see `imprinting`). Without
    `labels`, they are added to the known ones. `on_clips` is called before training.

    Raises:
        VideoError, LabelsError: `data` is unusable; see `data.choose_clips`.
        CheckpointError: the network does not take RGB, or the state to resume from is damaged.
        AslTritonError: `folder` holds something else or is not writable, the loss is not finite, or `keep_known` is
            impossible. Files already written are kept.
    """
    recipe, machines = recipe or Recipe(), machines or HardwareOptions()
    if checkpoint.channels != 3:
        raise CheckpointError(f"{checkpoint.path} takes {checkpoint.channels} input channels: only RGB can be trained")
    refuse_other(folder)
    if known is None and labels is not None and len(labels) == checkpoint.num_classes:
        known = labels  # assume that a bare weights file with this many classes was trained with these labels
    if keep_known:
        refuse_to_keep(checkpoint, known, recipe)
        recipe = dataclasses.replace(recipe, epochs=1, learning_rate=0.0)
    clips = choose_clips(
        data, videos, labels, recipe.held_out, recipe.seed, on_step,
        known=known or (), keep_known=keep_known, drop_empty=drop_empty,
    )  # fmt: skip
    unboxed = sum(clip.signer is None for clip in (*clips.train, *clips.held_out))
    if preset.framing == "signer" and unboxed:
        warning = (
            f"preset {preset.name!r} crops frames to the signer's box, but {unboxed:,} clips have no box: their whole "
            "frames were used"
        )
        clips = dataclasses.replace(clips, warnings=(*clips.warnings, warning))
    kept = {class_id for class_id, gloss in enumerate(clips.glosses) if keep_known and gloss in (known or ())}
    if keep_known:
        clips = dataclasses.replace(clips, warnings=(*clips.warnings, describe_kept(clips, kept)))
    net, num_known = replace_classifier(checkpoint, known or (), clips.glosses, recipe.seed)
    about = {
        "from_sha256": checkpoint.sha256,
        "num_known_glosses": num_known,
        "num_train_clips": len(clips.train),
        "num_held_out_clips": len(clips.held_out),
        **dataclasses.asdict(recipe),
        **({"num_kept_glosses": len(kept)} if keep_known else {}),
        "trainer": f"asl-triton {version('asl-triton')}, torch {torch.__version__}, lightning {version('lightning')}",
    }
    card = adapt_card(card, clips, data, purpose, caveat)
    training = folder / TRAINING
    rate = LEARNING_RATES[recipe.train] if recipe.learning_rate is None else recipe.learning_rate
    callback = CheckpointCallback(folder, clips.glosses, preset, card, about, rate, recipe.patience, on_step, on_epoch)
    settings = {**about, "glosses": clips.glosses, "clips": clips.fingerprint, "preset": preset.to_json()}
    with translate_training_errors(folder, callback):
        trainer = make_trainer(recipe, machines, callback)
        init_or_verify_settings(training, settings)
        if trainer.is_global_zero:
            on_clips(clips)
        module = FineTuning(net, preset, recipe.train, recipe.weight_decay, recipe.seed)
        loaders = make_loaders(trainer, net, clips, preset, recipe, machines, training, on_step, keep_known)
        if keep_known:
            cached = loaders[0].dataset
            assert isinstance(cached, CachedFeatures)
            imprint_rows(net, cached.features, [clip.class_id for clip in clips.train], kept, preset)
        trainer.fit(module, *loaders, ckpt_path=callback.state if callback.state.exists() else None)
        if trainer.is_global_zero:
            shutil.rmtree(training)
    return FineTuneResult(
        folder, clips, tuple(callback.epochs), find_best(callback.epochs), num_known, callback.resumed_after,
        trainer.is_global_zero,
    )  # fmt: skip


def adapt_card(card: ModelCard, clips: Clips, data: Path, purpose: str | None, caveat: str | None) -> ModelCard:
    """Derive a fine-tuned network's card from the one it started with. It has no threshold yet.

    Raises:
        ContractError: a text is too long.
    """
    if purpose is None:
        before = f", from: {card.purpose}" if card.purpose else ""
        made = f"{len(clips.glosses):,} glosses, fine-tuned on {len(clips.train):,} clips of {data.name}{before}"
        purpose = textwrap.shorten(made, MAX_TEXT, placeholder=" ...")
    if caveat is None:
        made = f"fine-tuned from a model with this warning: {card.caveat}" if card.caveat else ""
        caveat = textwrap.shorten(made, MAX_TEXT, placeholder=" ...")
    return ModelCard(purpose=purpose, caveat=caveat)


def refuse_other(folder: Path) -> None:
    """Check that a folder is new, empty, or holds an interrupted fine-tuning run.

    Raises:
        AslTritonError: it holds something else.
    """
    if (folder / TRAINING).is_dir() or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise AslTritonError(
        f"{folder} already exists and is not an interrupted fine-tuning run: move it away, or choose another folder "
        "with --to"
    )


def refuse_to_keep(checkpoint: Checkpoint, known: Sequence[str] | None, recipe: Recipe) -> None:
    """Check that `keep_known` is possible.

    Raises:
        AslTritonError: the checkpoint has no labels, or more than the head would be trained.
    """
    if known is None:
        raise AslTritonError(
            f"{checkpoint.path} does not say which glosses it knows, so --keep-known cannot keep them: start from a "
            "bundle, a folder with labels.txt next to the weights"
        )
    if recipe.train != "head":
        raise AslTritonError(
            "--keep-known needs --train head: training other layers would change the features that the known glosses "
            "rely on"
        )


def describe_kept(clips: Clips, kept: set[int]) -> str:
    """Describe what was kept, and recommend measuring it.

    Raises:
        AslTritonError: there is nothing to keep, or nothing new.
    """
    num_new = len(clips.glosses) - len(kept)
    if not kept or not num_new:
        what = "the checkpoint knows none of these glosses" if num_new else "the checkpoint knows all these glosses"
        raise AslTritonError(f"{what}, so --keep-known has nothing to do: leave it out")
    measured = {clip.class_id for clip in clips.held_out} & kept
    return (
        f"{format_count(len(kept), 'known gloss keeps its row', 'known glosses keep their rows')} of the classifier, "
        f"and {format_count(num_new, 'new one is', 'new ones are')} imprinted. Held-out clips cover {len(measured):,} "
        "of the known glosses. Clips of a known sign may now be taken for a new one that looks like it: measure both "
        "with asl-triton evaluate. If you have clips of all glosses, train without --keep-known"
    )


def init_or_verify_settings(training: Path, settings: dict[str, Any]) -> None:
    """Record the settings, or check that they match those of the run interrupted in this folder.

    Raises:
        AslTritonError: they do not match.
    """
    path = training / "settings.json"
    wanted = json.loads(json.dumps(settings))
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = {}
    others = [name for name in wanted if noted.get(name) != wanted[name]]
    if others and (training / STATE).exists():
        was = "; ".join(f"{name} was {str(noted.get(name))[:40]!r}" for name in others[:3])
        raise AslTritonError(
            f"{training.parent} holds an interrupted fine-tuning run with other settings ({was}): use the same "
            "settings to resume it, or choose another folder with --to"
        )
    if others:  # nothing was trained yet
        shutil.rmtree(training, ignore_errors=True)
        training.mkdir(parents=True)
        with atomic_write(path, shared=True) as file:
            file.write(json.dumps(settings, indent=1).encode())


def replace_classifier(
    checkpoint: Checkpoint, known: Sequence[str], glosses: Sequence[str], seed: int
) -> tuple[I3D, int]:
    """Give the checkpoint's network a classifier for `glosses`; known glosses keep their rows.

    Returns the network and the number of known glosses.
    """
    torch.manual_seed(seed)
    net = I3D(len(glosses), checkpoint.channels, checkpoint.width)
    body = {key: tensor for key, tensor in checkpoint.state.items() if not key.startswith("logits.")}
    net.load_state_dict(body, strict=False)
    places = {gloss: place for place, gloss in enumerate(known)}
    with torch.no_grad():
        for class_id, gloss in enumerate(glosses):
            if (place := places.get(gloss)) is not None:
                net.logits.conv3d.weight[class_id] = checkpoint.state[CLASSIFIER_KEY][place]
                bias = net.logits.conv3d.bias
                assert bias is not None
                bias[class_id] = checkpoint.state["logits.conv3d.bias"][place]
    return net.eval(), sum(gloss in places for gloss in glosses)
