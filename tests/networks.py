"""Small networks for tests that do not need the full one. Random weights, but with outputs that vary."""

from pathlib import Path

import torch

from asl_triton_export.i3d import I3D

GLOSSES = ("book", "drink", "hello", "help", "home", "mother", "thank you")


def build_small_network(
    num_classes: int = len(GLOSSES), *, width: float = 1 / 16, channels: int = 3, seed: int = 0
) -> I3D:
    """Build an I3D whose BatchNorm layers are not the identity, so that folding them is tested."""
    torch.manual_seed(seed)
    net = I3D(num_classes, channels, width).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.2, 0.6)
            torch.nn.init.uniform_(module.weight, 0.8, 1.6)
            torch.nn.init.uniform_(module.bias, -0.2, 0.4)
    torch.nn.init.normal_(net.logits.conv3d.weight, std=0.5)
    return net


def save_checkpoint(path: Path, **arguments: object) -> Path:
    """Save the state dict of a small network."""
    torch.save(build_small_network(**arguments).state_dict(), path)  # type: ignore[arg-type]
    return path


def save_labels(path: Path, glosses: tuple[str, ...] = GLOSSES) -> Path:
    """Save labels, one per line."""
    path.write_text("\n".join(glosses) + "\n", encoding="utf-8")
    return path
