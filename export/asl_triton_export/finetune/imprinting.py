"""Adds glosses to a classifier whose other rows stay as they are, from clips of the new glosses alone.

Trained on such clips, a new row learns to fire at any signer, since nothing ever tells it not to: on the demo signer it
took every clip of the known glosses, its norm bounded or not. So it is computed instead, by imprinting (Qi, Brown and
Lowe 2018, "Low-Shot Learning with Imprinted Weights"), with three measures that need no clip of a known gloss:

- The row is the mean of the known rows plus a direction: from the features of any clip to those of the new gloss.
- Features of any clip are what the last block's batch normalization remembers of the clips that the network was
  trained on. The direction is orthogonal to them, so that the new row is as silent as the known ones on average.
- It is only as long as 75 % of the gloss's training segments need to be recognized.

On the demo signer, ten clips of "water" next to 20 known glosses: the known ones fall from 155 to 153 right of 160
held-out clips, and water has 18 of 20; "fine": 153 and 20; both at once: 151 and 35 of 40. The share of segments was
chosen on these clips: with 90 %, "fine" took 16 clips of similar signs; with 50 %, "water" had 11 of 20.
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from asl_triton.presets import Preset
from asl_triton_export.i3d import I3D, average_neighbors

RECOGNIZED = 0.75  # of a gloss's training segments
LAST_UNITS = ("b0", "b1b", "b2b", "b3b")  # whose outputs are the features, in this order


def imprint_rows(
    net: I3D, features: Sequence[Tensor], class_ids: Sequence[int], kept: Collection[int], preset: Preset
) -> None:
    """Set the classifier's rows of the classes outside `kept`, in place.

    `features` are those of each training clip, (segments, F, T/8), and `class_ids` their classes.
    """
    layer = net.logits.conv3d
    assert layer.bias is not None
    with torch.no_grad():
        weight, bias = layer.weight[..., 0, 0, 0], layer.bias  # views of the parameters
        known = sorted(kept)
        rows, biases = weight[known].clone(), bias[known].clone()
        usual = compute_usual_features(net)
        for class_id in sorted(set(range(net.num_classes)) - set(kept)):
            own = torch.cat(
                [clip for clip, its_class in zip(features, class_ids, strict=True) if its_class == class_id]
            )
            steps = choose_steps(own, preset)  # (segments, F, S)
            direction = steps.mean(dim=(0, 2)) - usual
            direction -= usual * (direction @ usual) / (usual @ usual)
            direction /= direction.norm()
            rivals = torch.einsum("nfs,cf->ncs", steps, rows) + biases[:, None]
            target = rivals.amax(dim=(1, 2))
            if preset.score == "sigmoid":
                target = target.clamp_min(0)  # a confidence of 50 %
            lacking = target[:, None] - torch.einsum("nfs,f->ns", steps, rows.mean(dim=0)) - biases.mean()
            gained = torch.einsum("nfs,f->ns", steps, direction)
            lengths = torch.where(gained > 0, lacking / gained, math.inf).amin(dim=1).sort().values
            length = lengths[math.ceil(RECOGNIZED * len(lengths)) - 1].clamp_max(2 * measure_spread(rows))
            weight[class_id] = rows.mean(dim=0) + length * direction
            bias[class_id] = biases.mean()


def choose_steps(features: Tensor, preset: Preset) -> Tensor:
    """Features (N, F, T/8) at the steps whose greatest logit is the clip's: (N, F, S), S = 1 where logits are means."""
    if preset.step_pooling in ("max", "max-interpolated"):
        return average_neighbors(features)
    if preset.step_pooling == "mean":
        return average_neighbors(features).mean(dim=2, keepdim=True)
    return features.mean(dim=2, keepdim=True)


def measure_spread(rows: Tensor) -> Tensor:
    """The greatest distance of a row from the mean of all."""
    distances: Tensor = (rows - rows.mean(dim=0)).norm(dim=1)
    return distances.max()


def compute_usual_features(net: I3D) -> Tensor:
    """The mean features (F,) of the clips that the network was trained on, as batch normalization remembers them.

    A unit's output before its ReLU has mean `bias` and standard deviation `weight` over those clips; the mean of a
    rectified normal variable with mean m and standard deviation s is m cdf(m / s) + s pdf(m / s).
    """
    means = []
    for unit in LAST_UNITS:
        norm = net.get_submodule(f"Mixed_5c.{unit}.bn")
        assert isinstance(norm, nn.BatchNorm3d)
        mean, deviation = norm.bias, norm.weight.abs().clamp_min(1e-6)
        z = mean / deviation
        density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        means.append(mean * torch.special.ndtr(z) + deviation * density)
    return torch.cat(means)
