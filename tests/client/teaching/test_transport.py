"""A transport that answers with taught signs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from asl_triton.errors import AslTritonError, DictionaryError
from asl_triton.presets import PRESETS
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton.transport.base import Array, TensorSpec
from asl_triton.transport.fake import FakeTransport
from tests.client import videos
from tests.client.served import GLOSSES, described
from tests.client.teaching.taught import MODEL, NUM_CLASSES, NUM_FEATURES, answer, show, teach


def serve(signs: Sequence[int] = (0,), **parameters: str) -> FakeTransport:
    """Return a server whose answers are clips of these signs in turn. It repeats the last one."""
    remaining = iter(signs)

    def outputs(_model: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        num_steps = max(-(-inputs["FRAMES__0"].shape[1] // 8) - 1, 1)
        features, steps = answer(next(remaining, signs[-1]), 99)
        steps = np.resize(steps, (num_steps, NUM_CLASSES))
        return {"FEATURES__2": features[None], "STEP_LOGITS__1": steps[None], "LOGITS__0": steps.mean(axis=0)[None]}

    model = described(PRESETS["wlasl"], **{"asl_triton.checkpoint_sha256": "a" * 64, **parameters})
    model.outputs["FEATURES__2"] = TensorSpec("FP32", (-1, NUM_FEATURES))  # type: ignore[index]
    return FakeTransport({"signs": model}, GLOSSES, outputs)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(videos.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=64))


def test_taught_signs_replace_the_vocabulary(clip: str) -> None:
    with Recognizer(transport=serve([3]), dictionary=teach(5, 4)) as recognizer:
        served = recognizer.model()
        assert served.labels == tuple(f"sign{sign}" for sign in range(5)) and served.card.min_confidence == 0.5
        recognition = recognizer.recognize(clip)
    assert recognition.gloss == "sign3" and recognition.unsure is False and len(recognition.predictions) == 5


def test_sign_that_was_not_taught_is_unsure(clip: str) -> None:
    with Recognizer(transport=serve([70]), dictionary=teach(5, 4)) as recognizer:
        assert (recognizer.recognize(clip)).unsure is True


def test_dictionary_with_embeddings_of_another_size_is_rejected(clip: str) -> None:
    forged = SignDictionary(MODEL)
    for sign in range(2):
        shown = show(sign, 0)
        forged.add(f"sign{sign}", type(shown)(shown.vector[:-1], shown.energy))
    with (
        Recognizer(transport=serve([0]), dictionary=forged) as recognizer,
        pytest.raises(DictionaryError, match=r"the dictionary's embeddings have \d+ values, but this model's have \d+"),
    ):
        recognizer.recognize(clip)


def test_models_own_glosses_compete_with_taught_signs(clip: str) -> None:
    taught = teach(5, 4)
    with Recognizer(transport=serve([3]), dictionary=taught, with_vocabulary=True) as recognizer:
        assert (recognizer.model()).labels == (*taught.glosses, *GLOSSES)
        assert (recognizer.recognize(clip)).gloss == "sign3"
    with Recognizer(transport=serve([70]), dictionary=taught, with_vocabulary=True) as recognizer:
        own = (recognizer.recognize(clip)).gloss
    _, steps = answer(70, 99)
    assert own == GLOSSES[int(np.resize(steps, (7, NUM_CLASSES)).mean(axis=0).argmax())]


def test_taught_gloss_that_the_model_knows_is_one_class(clip: str) -> None:
    taught = teach(2, 3)
    for take in range(3):
        taught.add(GLOSSES[0], show(8, take))
    with Recognizer(transport=serve([8]), dictionary=taught, with_vocabulary=True) as recognizer:
        labels = (recognizer.model()).labels
        assert labels == ("sign0", "sign1", GLOSSES[0], *GLOSSES[1:])
        assert (recognizer.recognize(clip)).gloss == GLOSSES[0]


def test_confidences_come_from_the_classifier(clip: str) -> None:
    taught = teach(4, 3)
    with Recognizer(transport=serve([1]), dictionary=taught) as recognizer:
        recognition = recognizer.recognize(clip)
        embedding = recognizer.embed(clip)
    logits = taught.classifier().logits(embedding.vector[None])[0]
    ranked = {prediction.gloss: prediction.confidence for prediction in recognition.predictions}
    for gloss, logit in zip(taught.glosses, logits, strict=True):
        assert ranked[gloss] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_timeline_finds_taught_signs(clip: str) -> None:
    with Recognizer(transport=serve([2]), dictionary=teach(4, 3)) as recognizer:
        timeline = recognizer.timeline(clip)
    assert {segment.gloss for segment in timeline.segments} == {"sign2"}


def test_clips_can_be_embedded_and_taught_during_recognition(clip: str) -> None:
    taught = SignDictionary(MODEL)
    with Recognizer(transport=serve([6])) as recognizer:
        taught.add("sign6", recognizer.embed(clip))
        taught.add("sign0", show(0, 0))
        with_signs = recognizer.with_dictionary(taught)
        assert (with_signs.recognize(clip)).gloss == "sign6"
        assert (recognizer.recognize(clip)).gloss in GLOSSES
        with pytest.raises(DictionaryError, match="is an example of 'sign6' already"):
            taught.add("sign6", with_signs.embed(clip))


@pytest.mark.parametrize(("parameters", "says"), [
    ({"asl_triton.checkpoint_sha256": "c" * 64}, "another checkpoint"),
    ({"asl_triton.precision": "bf16"}, "another precision"),
])  # fmt: skip
def test_dictionary_of_another_model_is_rejected(clip: str, parameters: dict[str, str], says: str) -> None:
    with (
        Recognizer(transport=serve(**parameters), dictionary=teach(2, 2)) as recognizer,
        pytest.raises(DictionaryError, match=f"{says}.*than signs on fake:8001: teach"),
    ):
        recognizer.recognize(clip)


def test_another_dictionary_is_another_model() -> None:
    with Recognizer(transport=serve(), dictionary=teach(2, 2)) as recognizer:
        before = (recognizer.model()).identity
    with Recognizer(transport=serve(), dictionary=teach(2, 3)) as recognizer:
        assert (recognizer.model()).identity != before


def test_video_files_cannot_be_sent_for_taught_signs() -> None:
    with pytest.raises(AslTritonError, match="recognize_sign does not know taught signs: send frames"):
        Recognizer(transport=serve(), dictionary=teach(1, 1), send="video")
