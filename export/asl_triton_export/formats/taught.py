"""Adds taught signs to an exported network, which then gives the same answers as `DictionaryTransport`.

Classifier rows computed from examples ("imprinting", Qi et al. 2018) were tried first, but without examples of the old
glosses they cost too much accuracy on those. So the network contains the dictionary: prototypes, threshold and scale.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asl_triton.teaching.dictionary import SignDictionary
from asl_triton.teaching.embedding import MAX_FOLDED, THIRDS, fold_classes
from asl_triton.teaching.transport import CONTEXT_STEPS, KNOWN_FROM, MAX_LOG_CONFIDENCE, USUAL, combine_glosses
from asl_triton_export.formats.script_file import save_script
from asl_triton_export.triton_config import ServedNetwork


class TaughtNetwork(nn.Module):
    """A served network plus the signs of a dictionary: `forward(frames) -> (logits, step_logits, features)`.

    `logits` (N, K) and `step_logits` (N, S, K) have the taught glosses first, then the network's own glosses that were
    not taught. Their sigmoid is the confidence.
    """

    context_steps: Final[int] = CONTEXT_STEPS
    thirds: Final[int] = THIRDS
    folds: Final[bool]
    rest: Final[float]
    num_taught: Final[int]
    num_glosses: Final[int]
    threshold: Final[float]
    scale: Final[float]
    usual_energy: Final[float]
    max_log_confidence: Final[float] = MAX_LOG_CONFIDENCE
    prototypes: Tensor  # (K', D), of the taught signs
    axes: Tensor  # (R, D), as in `Whitening`
    gains: Tensor  # (R,)
    columns: Tensor  # (C,), the indices of the network's own glosses in the logits
    folding: Tensor  # (C, MAX_FOLDED), `fold_classes` as a matrix

    def __init__(self, network: nn.Module, dictionary: SignDictionary, own_labels: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        classifier, glosses = dictionary.classifier(), combine_glosses(dictionary, own_labels)
        self.num_taught, self.num_glosses = len(dictionary), len(glosses)
        self.threshold, self.scale = classifier.threshold, classifier.scale
        self.usual_energy = float(np.quantile(dictionary.energies(), USUAL))
        prototypes, whitening = classifier.prototypes, classifier.prototypes.whitening
        width = prototypes.vectors.shape[1]
        self.register_buffer("prototypes", torch.from_numpy(prototypes.vectors).float())
        axes = np.zeros((0, width)) if whitening is None else whitening.axes
        gains = np.zeros(0) if whitening is None else whitening.gains
        self.register_buffer("axes", torch.from_numpy(axes).float())
        self.register_buffer("gains", torch.from_numpy(gains).float())
        self.rest = 1.0 if whitening is None else float(whitening.rest)
        place = {gloss: number for number, gloss in enumerate(glosses)}
        self.register_buffer("columns", torch.tensor([place[gloss] for gloss in own_labels]))
        self.folds = len(own_labels) > MAX_FOLDED
        folding = (
            fold_classes(np.eye(len(own_labels), dtype=np.float32)) if self.folds else np.zeros((0, 0), np.float32)
        )
        self.register_buffer("folding", torch.from_numpy(np.ascontiguousarray(folding)))
        self.requires_grad_(False)

    def embed(self, features: Tensor, step_logits: Tensor) -> Tensor:
        """Embed a batch as `teaching.embedding.embed_clip` does: (N, F) and (N, S, C) to unit vectors (N, D)."""
        steps = step_logits @ self.folding if self.folds else step_logits
        num_steps = steps.size(1)
        thirds: list[Tensor] = []
        start = 0
        for third in range(self.thirds):
            length = num_steps  # of the whole clip, if it has fewer steps than thirds
            if num_steps >= self.thirds:
                length = num_steps // self.thirds + (1 if third < num_steps % self.thirds else 0)
            thirds.append(F.normalize(steps[:, start : start + length].mean(dim=1), dim=1))
            start += length if num_steps >= self.thirds else 0
        deviation = steps.std(dim=1, unbiased=False)
        parts = [features, torch.cat(thirds, dim=1), steps.amax(dim=1), deviation]
        return F.normalize(torch.cat([F.normalize(part, dim=1) for part in parts], dim=1), dim=1)

    def classify(self, vectors: Tensor, step_logits: Tensor, own_logits: Tensor) -> Tensor:
        """Return `DictionaryTransport`'s logits (N, K) for vectors (N, D), step logits (N, S, C) and logits (N, C)."""
        whitened = self.rest * vectors + ((vectors @ self.axes.t()) * self.gains) @ self.axes
        taught = self.scale * (F.normalize(whitened, dim=1) @ self.prototypes.t() - self.threshold)
        energy = torch.logsumexp(step_logits.mean(dim=1), dim=1, keepdim=True)
        taught = taught - (energy - self.usual_energy)
        none_taught = F.logsigmoid(-taught.amax(dim=1, keepdim=True))
        log_own = (none_taught + F.log_softmax(own_logits, dim=1)).double().clamp(max=self.max_log_confidence)
        own = (log_own - torch.log(-torch.expm1(log_own))).float()
        logits = torch.full((vectors.size(0), self.num_glosses), -1e9, device=vectors.device)
        logits[:, : self.num_taught] = taught
        logits[:, self.columns] = torch.maximum(logits[:, self.columns], own)
        return logits

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own_logits, own_steps, features = self.network(frames)
        logits = self.classify(self.embed(features, own_steps), own_steps, own_logits)
        steps: list[Tensor] = []
        for place in range(own_steps.size(1)):
            around = own_steps[:, max(place - self.context_steps, 0) : place + self.context_steps + 1]
            steps.append(self.classify(self.embed(features, around), around, own_steps[:, place]))
        return logits, torch.stack(steps, dim=1), features


def add_taught_signs(
    folder: Path, dictionary: SignDictionary, network: ServedNetwork, own_labels: tuple[str, ...]
) -> tuple[ServedNetwork, tuple[str, ...]]:
    """Add a dictionary to `model.pt` in a version folder; return the description and the labels of the new network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what Triton's backend loads
        served = torch.jit.load(folder / "model.pt")
    save_script(TaughtNetwork(served, dictionary, own_labels).eval(), folder / "model.pt")
    labels = combine_glosses(dictionary, own_labels)
    taught = replace(
        network,
        num_classes=len(labels),
        preset=replace(network.preset, score="sigmoid"),
        checkpoint_sha256=f"{network.checkpoint_sha256}+{dictionary.hash()}",
        card=replace(network.card, min_confidence=KNOWN_FROM),
    )
    return taught, labels
