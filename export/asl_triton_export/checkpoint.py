"""Checkpoints: loads a weights file into a network, and explains every mismatch."""

import re
import stat
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from asl_triton.errors import CheckpointError, LabelsError
from asl_triton.files import sha256
from asl_triton.labels import read_labels
from asl_triton_export.i3d import I3D, STEM_CHANNELS

STEM_KEY = "Conv3d_1a_7x7.conv3d.weight"
CLASSIFIER_KEY = "logits.conv3d.weight"
KINETICS_CLASSES = 400
MAX_CLASSES = 100_000
MAX_WIDTH = 4.0
# An I3D checkpoint has 344 tensors and 60 MB, or a few times that with an optimizer's state.
MAX_FILE_BYTES = 4 * 2**30
MAX_INDEX_BYTES = 4 * 2**20  # for a file's list of tensors: enough for about ten thousand


@dataclass(frozen=True)
class Checkpoint:
    """An I3D state dict, and the network's dimensions, taken from its shapes."""

    path: Path
    sha256: str
    state: dict[str, Tensor]
    num_classes: int
    channels: int
    width: float

    def network(self) -> I3D:
        """Build the network as trained, in float32 and in eval mode."""
        net = I3D(self.num_classes, self.channels, self.width)
        net.load_state_dict(self.state)
        return net.eval()


def load_checkpoint(path: Path) -> Checkpoint:
    """Load an I3D checkpoint: `.safetensors`, or a PyTorch file with a state dict, which may be under `state_dict` and
    may have `module.` before every key.

    The number of classes, input channels, and width come from the shapes. No code in the file is run.

    Raises:
        CheckpointError: the file is not safe to read, or belongs to another network; the message names the key.
    """
    state = _strip(path, _read(path))
    stem, classifier = state.get(STEM_KEY), state.get(CLASSIFIER_KEY)
    if stem is None or classifier is None:
        some = ", ".join(sorted(state)[:3]) or "nothing"
        raise CheckpointError(
            f"{path} is not an I3D checkpoint: it has no {STEM_KEY if stem is None else CLASSIFIER_KEY} (it has "
            f"{some}, ... {len(state)} tensors). Only I3D in the format of WLASL and bsl1k (Piergiaj's port) can be "
            "loaded; export other networks with --torchscript"
        )
    if stem.ndim != 5 or classifier.ndim != 5:
        raise CheckpointError(
            f"{path} is not an I3D checkpoint: {STEM_KEY} has shape {list(stem.shape)} and {CLASSIFIER_KEY} "
            f"{list(classifier.shape)}, but both should have five axes"
        )
    num_classes, channels, width = classifier.shape[0], stem.shape[1], stem.shape[0] / STEM_CHANNELS
    if not 1 <= num_classes <= MAX_CLASSES or not 0 < width <= MAX_WIDTH or not 1 <= channels <= 16:
        raise CheckpointError(
            f"{path} has an I3D with {num_classes} classes, {channels} input channels, and {stem.shape[0]} stem "
            f"channels, above the limits of {MAX_CLASSES}, 16, and {int(STEM_CHANNELS * MAX_WIDTH)}"
        )
    with torch.device("meta"):
        expected = I3D(num_classes, channels, width).state_dict()
    # BatchNorm's counters: old PyTorch versions do not save them, some save another shape, and we never read them.
    state |= {
        key: torch.zeros_like(t, device="cpu") for key, t in expected.items() if key.endswith("num_batches_tracked")
    }
    _explain_mismatch(path, state, expected)
    state = {key: state[key].float() if state[key].is_floating_point() else state[key] for key in expected}
    for key, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: {key} has values that are not finite: the training diverged, or the file is damaged"
            )
    return Checkpoint(path, sha256(path), state, num_classes, channels, width)


def read_labels_for(checkpoint: Checkpoint, path: Path | None) -> tuple[str, ...]:
    """Read the labels of a checkpoint, one per class.

    Raises:
        LabelsError: there is no path, the file is unreadable, or the number of labels is wrong.
    """
    if path is None:
        raise LabelsError(
            f"which glosses does {checkpoint.path} know? Give --labels a file with one gloss per line, in class order "
            "(WLASL's wlasl_class_list.txt works)"
        )
    labels = read_labels(path)
    if len(labels) == checkpoint.num_classes:
        return labels
    counts = f"{checkpoint.path} has {checkpoint.num_classes} classes, but {path} has {len(labels)} glosses"
    if checkpoint.num_classes == KINETICS_CLASSES:
        raise LabelsError(f"this looks like a Kinetics checkpoint with 400 classes: {counts}")
    if len(labels) > checkpoint.num_classes:
        raise LabelsError(
            f"{counts}. If this is WLASL's class list and the checkpoint is WLASL-{checkpoint.num_classes}, use its "
            f"first {checkpoint.num_classes} lines: head -n {checkpoint.num_classes} {path.name} > labels.txt"
        )
    raise LabelsError(f"{counts}: give --labels the list that this checkpoint was trained with")


def _read(path: Path) -> object:
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            check_index(path, read_safetensors_header_size(path))
            return load_file(path)
        if zipfile.is_zipfile(path):
            check_index(path, read_zip_directory_size(path))
            _refuse_zip_bomb(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own file formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as exc:
        raise CheckpointError(f"{path} does not fit into memory: it is damaged, or not a checkpoint") from exc
    except CheckpointError:
        raise
    except Exception as exc:  # a file of another kind can raise nearly anything
        code = re.search(r"(?i)unsupported (?:global: )?GLOBAL (\S+)", str(exc))
        if code:
            raise CheckpointError(
                f"{path} is a pickle that needs to run code ({code[1]}), which we never do: save the state dict alone "
                "(torch.save(net.state_dict(), ...)) or as .safetensors"
            ) from exc
        kind = "safetensors file" if path.suffix == ".safetensors" else "PyTorch checkpoint"
        raise CheckpointError(
            f"{path} is damaged, or is not a {kind}: give the path of a state dict (.pt) or a .safetensors file, or "
            "download it again"
        ) from exc


def check_file(path: Path) -> None:
    """Check that a path is a readable file of a plausible size, before reading any of it.

    Raises:
        CheckpointError: it is not.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()
    except OSError as exc:
        raise CheckpointError(f"cannot read {path}: {exc.strerror or exc}") from exc
    if not stat.S_ISREG(status.st_mode):  # a device or a pipe may have no end
        raise CheckpointError(f"cannot read {path}: it is not a file")
    if not status.st_size:
        raise CheckpointError(f"{path} is empty: download or copy it again")
    if status.st_size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path} has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}: too large for an I3D checkpoint. Save "
            "the state dict alone"
        )


def check_index(path: Path, num_bytes: int) -> None:
    """Check that a file's list of tensors has a plausible size.

    Raises:
        CheckpointError: it is too long.
    """
    if num_bytes > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{path} lists its tensors in {num_bytes:,} bytes, but I3D needs 60,000: it belongs to another network, or "
            "is damaged"
        )


def read_safetensors_header_size(path: Path) -> int:
    """Return the size in bytes of a .safetensors file's header, which is its first number
    (https://huggingface.co/docs/safetensors/index#format), or 0 if the file is shorter than that."""
    with path.open("rb") as file:
        first = file.read(8)
    size = int(struct.unpack("<Q", first)[0]) if len(first) == 8 else 0
    return size if size <= path.stat().st_size else 0


def read_zip_directory_size(path: Path) -> int:
    """Return the size in bytes of a zip file's directory, from its end record or the zip64 one before it
    (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 and 4.3.16)."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 2**16 - 98, 0))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    sizes = [struct.unpack_from("<I", tail, end + 12)[0]] if 0 <= end <= len(tail) - 22 else []
    if tail[max(end - 76, 0) : max(end - 72, 0)] == b"PK\x06\x06":
        sizes.append(struct.unpack_from("<Q", tail, end - 76 + 40)[0])
    return max(sizes, default=0)


def _refuse_zip_bomb(path: Path) -> None:
    """Refuse a zip that unpacks to more than its own size: PyTorch does not compress its entries."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > 2 * path.stat().st_size + 2**20:
        raise CheckpointError(
            f"{path} has {path.stat().st_size:,} bytes that unpack to {unpacked:,}: PyTorch checkpoints are never "
            "compressed, so it was not opened"
        )
    check_index(path, max((entry.file_size for entry in entries if entry.filename.endswith("data.pkl")), default=0))


def _strip(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains a {type(content).__name__}, not a state dict: save net.state_dict()")
    state = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is not a state dict: {str(key)[:60]!r} is a {type(value).__name__}, not a tensor. "
                "Save net.state_dict(), bare or under 'state_dict'"
            )
        state[key.removeprefix("module.")] = value
    return state


def _explain_mismatch(path: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing = [key for key in expected if key not in state]
    if missing:
        raise CheckpointError(
            f"{path} is not an I3D checkpoint: {missing[0]} is missing ({len(missing)} tensors in all), "
            f"shape {list(expected[missing[0]].shape)} expected"
        )
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise CheckpointError(
            f"{path} is of another network: {unknown[0]} is not in I3D ({len(unknown)} tensors in all)"
        )
    for key, tensor in expected.items():
        if key in state and state[key].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {key} has the shape {list(state[key].shape)}, and {list(tensor.shape)} was expected "
                "from the width of the first convolution"
            )
