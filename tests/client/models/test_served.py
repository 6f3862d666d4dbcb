"""What a server serves: found, read, and refused where it is not ours."""

import asyncio
import dataclasses

import numpy as np
import pytest

from asl_triton.errors import ContractError, LabelsError
from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton.models.served import ServedModel, choose_model, list_models, read_model
from asl_triton.presets import PRESETS
from asl_triton.transport.base import ModelDescription, TensorSpec
from asl_triton.transport.fake import FakeTransport
from tests.client.served import GLOSSES, answering, described, fake, in_order

STRANGER = ModelDescription("stranger", "1", {}, {}, {})


def serving(*models: ModelDescription) -> FakeTransport:
    return FakeTransport({model.name: model for model in models}, GLOSSES, answering(in_order))


def read(*models: ModelDescription, model: str | None = None) -> ServedModel:
    return asyncio.run(read_model(serving(*models), model))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_contract_is_read_from_the_server(preset: object, datatype: str) -> None:
    parameters = {"asl_triton.checkpoint_sha256": "c0ffee", "asl_triton.exporter": "asl-triton 1, torch 2"}
    served = read(described(preset, datatype=datatype, **parameters), STRANGER)  # type: ignore[arg-type]
    assert served == ServedModel(
        name="signs", version="1", preset=preset, labels=GLOSSES, datatype=datatype, precision="fp32",
        checkpoint_sha256="c0ffee", exporter="asl-triton 1, torch 2",
    )  # type: ignore[arg-type]  # fmt: skip


def test_card_is_read_from_the_server_and_is_no_part_of_the_identity() -> None:
    card = ModelCard(purpose="six signs", caveat="an example", min_confidence=0.4)
    served, plain = read(described(**card.to_parameters())), read(described())
    assert (served.card, plain.card) == (card, EMPTY_CARD)
    assert (served.introduction, plain.introduction) == ("signs: six signs", "")
    assert served.identity == plain.identity  # so journals of earlier versions stay valid


def test_card_that_makes_no_sense_is_a_sentence() -> None:
    with pytest.raises(ContractError, match=r"signs on fake:8001: the model's min_confidence is '40 %'"):
        read(described(**{"asl_triton.min_confidence": "40 %"}))


def test_only_model_needs_no_name() -> None:
    assert asyncio.run(choose_model(serving(STRANGER, described()), None)).name == "signs"


def test_models_are_found_among_other_models() -> None:
    found = asyncio.run(list_models(serving(described(name="b"), STRANGER, described(name="a"))))
    assert [model.name for model in found] == ["a", "b"]


@pytest.mark.parametrize(("models", "wanted", "says"), [
    ([], None, r"serves no asl-triton model \(it serves nothing\)"),
    ([STRANGER], None, r"serves no asl-triton model \(it serves stranger\)"),
    ([described(name="a"), described(name="b")], None, r"serves 2 models: choose one with --model \(a, b\)"),
    ([described(), STRANGER], "stranger", "stranger on fake:8001 is not an asl-triton model"),
    ([described(), STRANGER], "nobody", "serves no model 'nobody'; its models: signs"),
    ([STRANGER], "nobody", "serves no model 'nobody'; its models: none"),
], ids=str)  # fmt: skip
def test_choice_that_cannot_be_made_is_a_sentence(models: list, wanted: str | None, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        asyncio.run(choose_model(serving(*models), wanted))


def changed(**fields: object) -> ModelDescription:
    return dataclasses.replace(described(), **fields)  # type: ignore[arg-type]


def outputs(**specs: TensorSpec | None) -> dict[str, TensorSpec]:
    return {name: spec for name, spec in {**described().outputs, **specs}.items() if spec}


@pytest.mark.parametrize(("model", "says"), [
    (changed(inputs={}), "its inputs are none, not FRAMES__0 alone"),
    (changed(inputs={**described().inputs, "MASK": TensorSpec("BOOL", (-1,))}), "its inputs are FRAMES__0, MASK"),
    (changed(inputs={"FRAMES__0": TensorSpec("UINT8", (-1, 3, -1, 224, 224))}), "FRAMES__0 is UINT8"),
    (changed(inputs={"FRAMES__0": TensorSpec("FP16", (-1, 3, -1, 224, 224))}), "FRAMES__0 is FP16"),
    (changed(inputs={"FRAMES__0": TensorSpec("UINT8", (-1, -1, 256, 256, 3))}), r"\[-1, -1, 256, 256, 3\], not UINT8"),
    (changed(outputs=outputs(LOGITS__0=None)), "LOGITS__0 is missing"),
    (changed(outputs=outputs(LOGITS__0=TensorSpec("FP16", (-1, 6)))), r"LOGITS__0 is FP16 \[-1, 6\]"),
    (changed(outputs=outputs(LOGITS__0=TensorSpec("FP32", (-1, -1)))), "LOGITS__0 is FP32"),
    (changed(outputs=outputs(STEP_LOGITS__1=None)), "STEP_LOGITS__1 is missing"),
    (changed(outputs=outputs(STEP_LOGITS__1=TensorSpec("FP32", (-1, -1, 7)))), r"not FP32 \[-1, -1, 6\]"),
])  # fmt: skip
def test_tensors_that_are_not_ours_are_a_sentence(model: ModelDescription, says: str) -> None:
    with pytest.raises(ContractError, match=says) as raised:
        read(model)
    assert str(raised.value).startswith("signs on fake:8001 does not match asl-triton's contract")
    assert str(raised.value).endswith("Export it again")


def test_preset_that_is_none_is_a_sentence_that_names_the_model() -> None:
    with pytest.raises(ContractError, match="signs on fake:8001: .*not JSON"):  # noqa: RUF043
        read(changed(parameters={"asl_triton.preset": "wlasl"}))


@pytest.mark.parametrize(("model", "labels", "says"), [
    (changed(labeled=frozenset()), GLOSSES, "has no labels"),
    (described(), (*GLOSSES[:4], "", ""), "has 6 classes, but 2 of them have no label.*the first is class 4"),
])  # fmt: skip
def test_labels_that_do_not_fit_are_a_sentence(model: ModelDescription, labels: tuple[str, ...], says: str) -> None:
    transport = FakeTransport({"signs": model}, labels, answering(in_order))
    with pytest.raises(LabelsError, match=says):
        asyncio.run(read_model(transport))


def test_input_is_prepared_as_the_model_takes_it() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 224, 224, 3), np.uint8)
    assert np.array_equal(read(described()).make_input(frames), frames[None])
    classic = read(described(datatype="FP32")).make_input(frames)
    assert classic.shape == (1, 3, 9, 224, 224) and classic.dtype == np.float32
    assert (classic.min(), classic.max()) == (-1, 1)


def test_labels_are_read_with_frames_that_the_model_takes() -> None:
    transport = fake(PRESETS["bsl1k"])
    asyncio.run(read_model(transport))
    assert transport.calls == []
