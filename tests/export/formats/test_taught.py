"""Taught signs inside an exported network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asl_triton.errors import AslTritonError, DictionaryError
from asl_triton.models.card import ModelCard
from asl_triton.models.golden import GoldenAnswer, render_golden
from asl_triton.models.repository import read_folder
from asl_triton.presets import PRESETS
from asl_triton.teaching.dictionary import SignDictionary, TaughtModel
from asl_triton.teaching.embedding import embed_clip
from asl_triton.teaching.transport import combine_glosses, combine_logits, embed_steps
from asl_triton_export.checkpoint import CLASSIFIER_KEY, Checkpoint, load_checkpoint
from asl_triton_export.exporter import export_model
from asl_triton_export.formats.taught import TaughtNetwork
from tests.client.teaching.taught import NUM_CLASSES, NUM_FEATURES, teach
from tests.exports import find_local_paths
from tests.networks import GLOSSES, save_checkpoint


class Answering(nn.Module):
    """A network that returns its input: a row of features, then rows of step logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes: int = num_classes

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = frames[:, 1:, : self.num_classes]
        return steps.mean(dim=1), steps, frames[:, 0]


def make_answer(num_classes: int, num_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    width = max(NUM_FEATURES, num_classes)
    return rng.random(width).astype(np.float32), rng.normal(size=(num_steps, num_classes)).astype(np.float32)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 13])
@pytest.mark.parametrize("num_classes", [NUM_CLASSES, 300])
@pytest.mark.parametrize("takes", [1, 4])
def test_network_gives_the_same_answers_as_the_client(num_steps: int, num_classes: int, takes: int) -> None:
    taught = SignDictionary(teach(1, 1).model)
    for sign in range(4):
        for take in range(takes):
            taught.add(f"sign{sign}", embed_clip(*make_answer(num_classes, 7, 10 * sign + take)))
    own = ("a", "sign2", *(f"gloss{number}" for number in range(num_classes - 2)))
    network = torch.jit.script(TaughtNetwork(torch.jit.script(Answering(num_classes)), taught, own).eval())
    features, steps = make_answer(num_classes, num_steps, 99)
    frames = np.zeros((1, 1 + num_steps, len(features)), np.float32)
    frames[0, 0], frames[0, 1:, :num_classes] = features, steps
    logits, step_logits, _ = network(torch.from_numpy(frames))
    expected = combine_logits(taught, [embed_clip(features, steps)], steps.mean(axis=0)[None], own)
    np.testing.assert_allclose(logits.numpy(), expected, atol=2e-3)
    expected_steps = combine_logits(taught, embed_steps(features, steps), steps, own)
    np.testing.assert_allclose(step_logits[0].numpy(), expected_steps, atol=2e-3)
    assert combine_glosses(taught, own) == ("sign0", "sign1", "sign2", "sign3", "a", *own[2:])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("weights") / "small.pt"))


@pytest.fixture
def taught(checkpoint: Checkpoint) -> SignDictionary:
    """A dictionary of two signs for that checkpoint."""
    rng = np.random.default_rng(0)
    num_features, num_classes = checkpoint.state[CLASSIFIER_KEY].shape[1], checkpoint.num_classes
    signs = SignDictionary(TaughtModel(checkpoint.sha256, "fp32", PRESETS["wlasl"].to_json()))
    for gloss in ("coffee", GLOSSES[0]):
        for _ in range(3):
            features, steps = rng.random(num_features), rng.normal(size=(7, num_classes))
            signs.add(gloss, embed_clip(features.astype(np.float32), steps.astype(np.float32)))
    return signs


def test_model_has_old_and_new_glosses(checkpoint: Checkpoint, taught: SignDictionary, tmp_path: Path) -> None:
    card = ModelCard(purpose="seven signs", min_confidence=0.8)
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "taught", dictionary=taught, card=card)
    labels = (tmp_path / "taught" / "labels.txt").read_text().splitlines()
    assert labels == ["coffee", *GLOSSES]
    assert find_local_paths(tmp_path / "taught" / "1" / "model.pt") == []
    served = read_folder(tmp_path / "taught").served
    assert served.preset == replace(PRESETS["wlasl"], score="sigmoid") and served.card.min_confidence == 0.5
    assert served.card.purpose == "seven signs" and served.checkpoint_sha256.startswith(checkpoint.sha256)
    golden = GoldenAnswer.load(tmp_path / "taught" / "golden.npz")
    with torch.inference_mode():
        frames = torch.from_numpy(render_golden(golden.num_frames))[None]
        logits, steps, features = torch.jit.load(tmp_path / "taught" / "1" / "model.pt")(frames)
    assert logits.shape == (1, len(labels)) and steps.shape[2] == len(labels) and features.shape[0] == 1
    np.testing.assert_allclose(logits[0].numpy(), golden.logits, atol=golden.tolerance)


@pytest.mark.parametrize(("options", "says"), [
    ({"precision": "bf16"}, "another precision"),
    ({"preset": PRESETS["bsl1k"]}, "another preset"),
])  # fmt: skip
def test_signs_of_another_model_are_refused(
    checkpoint: Checkpoint, taught: SignDictionary, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    preset = options.pop("preset", PRESETS["wlasl"])
    with pytest.raises(DictionaryError, match=f"{says}.*export with the same options as the model"):
        export_model(checkpoint, GLOSSES, preset, tmp_path, "taught", dictionary=taught, **options)
    assert not list(tmp_path.iterdir())


def test_empty_dictionary_and_other_format_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    empty = SignDictionary(TaughtModel(checkpoint.sha256, "fp32", PRESETS["wlasl"].to_json()))
    with pytest.raises(DictionaryError, match="no signs yet"):
        export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "taught", dictionary=empty)
    with pytest.raises(AslTritonError, match="openvino does not support taught signs"):
        export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "taught", dictionary=empty, served_as="openvino")
