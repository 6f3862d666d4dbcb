"""Good and bad checkpoint files. The error for a bad one names the key or file in one sentence."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asl_triton.errors import AslTritonError, CheckpointError, ContractError, LabelsError
from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton_export.bundle import open_bundle, write_threshold
from asl_triton_export.checkpoint import load_checkpoint, read_labels_for
from tests.networks import GLOSSES, build_small_network, save_checkpoint, save_labels


def make_state() -> dict[str, torch.Tensor]:
    return build_small_network().state_dict()


def drop_counters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


class MakesFolder:
    """Pickles as a call to os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", [
    lambda path: torch.save(make_state(), path),
    lambda path: torch.save({"module." + k: v for k, v in make_state().items()}, path),
    lambda path: torch.save({"epoch": 3, "state_dict": {"module." + k: v for k, v in make_state().items()}}, path),
    lambda path: torch.save(drop_counters(make_state()), path),
    lambda path: torch.save({k: v.half() for k, v in make_state().items()}, path),
    lambda path: torch.save(make_state(), path, _use_new_zipfile_serialization=False),
], ids=["bare", "module", "state_dict", "no-counters", "half", "legacy"])  # fmt: skip
def test_every_form_of_a_state_dict_loads(tmp_path: Path, form: Callable[[Path], None]) -> None:
    path = tmp_path / "weights.pt"
    form(path)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.num_classes, checkpoint.channels, checkpoint.width) == (len(GLOSSES), 3, 1 / 16)
    assert torch.allclose(checkpoint.network().logits.conv3d.weight, make_state()["logits.conv3d.weight"], atol=1e-2)


def test_safetensors_load(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in make_state().items()}, path)
    assert load_checkpoint(path).num_classes == len(GLOSSES)


@pytest.mark.parametrize("width", [1 / 16, 1 / 4, 1 / 2])
def test_width_is_derived_from_the_shapes(tmp_path: Path, width: float) -> None:
    assert load_checkpoint(save_checkpoint(tmp_path / "w.pt", width=width)).width == width


def write_zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))


def save_with(key: str, value: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: torch.save(make_state() | {key: value}, path)


def save_without(key: str) -> Callable[[Path], None]:
    return lambda path: torch.save({k: v for k, v in make_state().items() if k != key}, path)


BAD = {
    "missing": (lambda path: None, "cannot read"),
    "empty": (lambda path: path.touch(), "is empty"),
    "text": (lambda path: path.write_text("these are not weights\n" * 9), "not a PyTorch checkpoint"),
    "zip-bomb": (write_zip_bomb, "unpack to"),
    "zip": (
        lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"),
        "is damaged, or is not a PyTorch checkpoint",
    ),
    "code": (lambda path: torch.save({"a": MakesFolder(path.with_name("pwned"))}, path), "needs to run code"),
    "bare-pickle": (
        lambda path: path.write_bytes(pickle.dumps(MakesFolder(path.with_name("pwned")))),
        "not a PyTorch checkpoint",
    ),
    "cut": (
        lambda path: (torch.save(make_state(), path), os.truncate(path, 40_000)),
        "is damaged, or is not a PyTorch checkpoint",
    ),
    "a-list": (lambda path: torch.save([torch.zeros(3)], path), "contains a list"),
    "not-tensors": (lambda path: torch.save({"epoch": 3}, path), "'epoch' is a int"),
    "other-network": (lambda path: torch.save(torch.nn.Conv2d(3, 8, 3).state_dict(), path), "not an I3D checkpoint"),
    "i3d-and-more": (save_with("fc.weight", torch.zeros(3)), "fc.weight is not in I3D"),
    "a-key-less": (save_without("Mixed_4c.b1b.bn.weight"), "Mixed_4c.b1b.bn.weight is missing"),
    "a-shape-off": (save_with("Mixed_3b.b0.conv3d.weight", torch.zeros(5, 12, 1, 1, 1)), r"\[5, 12, 1, 1, 1\], and"),
    "two-axes": (save_with("logits.conv3d.weight", torch.zeros(7, 64)), "five axes"),
    "nan": (save_with("Mixed_5c.b0.bn.bias", torch.full((24,), torch.nan)), "not finite"),
    "huge": (save_with("Conv3d_1a_7x7.conv3d.weight", torch.zeros(1).expand(10**6, 3, 7, 7, 7)), "above the limits"),
}


@pytest.mark.parametrize(("make", "says"), BAD.values(), ids=BAD.keys())
def test_bad_checkpoint_is_reported_in_one_sentence(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    path = tmp_path / "bad.pt"
    make(path)
    with pytest.raises(CheckpointError, match=says) as raised:
        load_checkpoint(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "pwned").exists()


def test_broken_safetensors_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_text("not tensors")
    with pytest.raises(CheckpointError, match="is damaged, or is not a safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize(("num_classes", "glosses", "says"), [
    (7, 5, "has 7 classes, but .* has 5 glosses: give --labels the list"),
    (7, 20, "use its first 7 lines"),
    (400, 7, "looks like a Kinetics checkpoint with 400 classes: .* has 7 glosses"),
])  # fmt: skip
def test_labels_of_the_wrong_length_are_explained(tmp_path: Path, num_classes: int, glosses: int, says: str) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "w.pt", num_classes=num_classes))
    labels = save_labels(tmp_path / "labels.txt", tuple(f"gloss {n}" for n in range(glosses)))
    with pytest.raises(LabelsError, match=says):
        read_labels_for(checkpoint, labels)


def test_bundle_has_its_own_labels_and_preset(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "weights.pt")
    save_labels(tmp_path / "labels.txt")
    (tmp_path / "preset.json").write_text('{"name": "mine", "square": 256}')
    bundle = open_bundle(tmp_path)
    assert bundle.preset is not None and bundle.preset.name == "mine"
    assert bundle.labels == tmp_path / "labels.txt"
    assert open_bundle(tmp_path / "weights.pt").labels is None
    assert bundle.card == open_bundle(tmp_path / "weights.pt").card == EMPTY_CARD  # as written by earlier versions


def test_threshold_is_written_to_the_card_and_the_rest_stays(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "weights.pt")
    assert write_threshold(tmp_path, 0.4) == tmp_path / "card.json"
    assert open_bundle(tmp_path).card == ModelCard(min_confidence=0.4)
    (tmp_path / "card.json").write_text(ModelCard(purpose="p", caveat="c", min_confidence=0.1).to_json())
    write_threshold(tmp_path, 0.7)
    assert open_bundle(tmp_path).card == ModelCard(purpose="p", caveat="c", min_confidence=0.7)


def test_damaged_card_is_reported(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "weights.pt")
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ContractError, match=r"card\.json: a model card must be a JSON object"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("files", [[], ["weights.pt", "weights.safetensors"]])
def test_folder_without_exactly_one_weights_file_is_refused(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="not a checkpoint bundle"):
        open_bundle(tmp_path)


def test_missing_checkpoint_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(AslTritonError, match="asl-triton fetch"):
        open_bundle(tmp_path / "nowhere.pt")
