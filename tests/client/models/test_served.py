"""Finding and reading the models of a server, and rejecting those that are not ours."""

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


def serve(*models: ModelDescription) -> FakeTransport:
    return FakeTransport({model.name: model for model in models}, GLOSSES, answering(in_order))


def read_served(*models: ModelDescription, model: str | None = None) -> ServedModel:
    return asyncio.run(read_model(serve(*models), model))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_contract_is_read_from_the_server(preset: object, datatype: str) -> None:
    parameters = {"asl_triton.checkpoint_sha256": "c0ffee", "asl_triton.exporter": "asl-triton 1, torch 2"}
    served = read_served(described(preset, datatype=datatype, **parameters), STRANGER)  # type: ignore[arg-type]
    assert served == ServedModel(
        name="signs", version="1", preset=preset, labels=GLOSSES, datatype=datatype, precision="fp32",
        checkpoint_sha256="c0ffee", exporter="asl-triton 1, torch 2",
    )  # type: ignore[arg-type]  # fmt: skip


def test_card_is_read_from_the_server_but_not_part_of_the_identity() -> None:
    card = ModelCard(purpose="six signs", caveat="an example", min_confidence=0.4)
    served, plain = read_served(described(**card.to_parameters())), read_served(described())
    assert (served.card, plain.card) == (card, EMPTY_CARD)
    assert (served.introduction, plain.introduction) == ("signs: six signs", "")
    assert served.identity == plain.identity  # so journals of earlier versions stay valid


def test_invalid_card_is_rejected() -> None:
    with pytest.raises(ContractError, match=r"signs on fake:8001: the model's min_confidence is '40 %'"):
        read_served(described(**{"asl_triton.min_confidence": "40 %"}))


def test_single_model_needs_no_name() -> None:
    assert asyncio.run(choose_model(serve(STRANGER, described()), None)).name == "signs"


def test_our_models_are_found_among_others() -> None:
    found = asyncio.run(list_models(serve(described(name="b"), STRANGER, described(name="a"))))
    assert [model.name for model in found] == ["a", "b"]


@pytest.mark.parametrize(("models", "wanted", "says"), [
    ([], None, r"serves no asl-triton model \(it serves nothing\)"),
    ([STRANGER], None, r"serves no asl-triton model \(it serves stranger\)"),
    ([described(name="a"), described(name="b")], None, r"serves 2 models: choose one with --model \(a, b\)"),
    ([described(), STRANGER], "stranger", "stranger on fake:8001 is not an asl-triton model"),
    ([described(), STRANGER], "nobody", "serves no model 'nobody'; its models: signs"),
    ([STRANGER], "nobody", "serves no model 'nobody'; its models: none"),
], ids=str)  # fmt: skip
def test_impossible_choice_is_rejected(models: list, wanted: str | None, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        asyncio.run(choose_model(serve(*models), wanted))


def alter(**fields: object) -> ModelDescription:
    return dataclasses.replace(described(), **fields)  # type: ignore[arg-type]


def alter_outputs(**specs: TensorSpec | None) -> dict[str, TensorSpec]:
    return {name: spec for name, spec in {**described().outputs, **specs}.items() if spec}


@pytest.mark.parametrize(("model", "says"), [
    (alter(inputs={}), "its inputs are none, not FRAMES__0 alone"),
    (alter(inputs={**described().inputs, "MASK": TensorSpec("BOOL", (-1,))}), "its inputs are FRAMES__0, MASK"),
    (alter(inputs={"FRAMES__0": TensorSpec("UINT8", (-1, 3, -1, 224, 224))}), "FRAMES__0 is UINT8"),
    (alter(inputs={"FRAMES__0": TensorSpec("FP16", (-1, 3, -1, 224, 224))}), "FRAMES__0 is FP16"),
    (alter(inputs={"FRAMES__0": TensorSpec("UINT8", (-1, -1, 256, 256, 3))}), r"\[-1, -1, 256, 256, 3\], not UINT8"),
    (alter(outputs=alter_outputs(LOGITS__0=None)), "LOGITS__0 is missing"),
    (alter(outputs=alter_outputs(LOGITS__0=TensorSpec("FP16", (-1, 6)))), r"LOGITS__0 is FP16 \[-1, 6\]"),
    (alter(outputs=alter_outputs(LOGITS__0=TensorSpec("FP32", (-1, -1)))), "LOGITS__0 is FP32"),
    (alter(outputs=alter_outputs(STEP_LOGITS__1=None)), "STEP_LOGITS__1 is missing"),
    (alter(outputs=alter_outputs(STEP_LOGITS__1=TensorSpec("FP32", (-1, -1, 7)))), r"not FP32 \[-1, -1, 6\]"),
])  # fmt: skip
def test_unexpected_tensors_are_rejected(model: ModelDescription, says: str) -> None:
    with pytest.raises(ContractError, match=says) as raised:
        read_served(model)
    assert str(raised.value).startswith("signs on fake:8001 does not match asl-triton's contract")
    assert str(raised.value).endswith("Export it again")


def test_invalid_preset_is_rejected_with_the_name_of_the_model() -> None:
    with pytest.raises(ContractError, match="signs on fake:8001: .*not JSON"):  # noqa: RUF043
        read_served(alter(parameters={"asl_triton.preset": "wlasl"}))


@pytest.mark.parametrize(("model", "labels", "says"), [
    (alter(labeled=frozenset()), GLOSSES, "has no labels"),
    (described(), (*GLOSSES[:4], "", ""), "has 6 classes, but 2 of them have no label.*the first is class 4"),
])  # fmt: skip
def test_missing_labels_are_rejected(model: ModelDescription, labels: tuple[str, ...], says: str) -> None:
    transport = FakeTransport({"signs": model}, labels, answering(in_order))
    with pytest.raises(LabelsError, match=says):
        asyncio.run(read_model(transport))


def test_input_has_the_format_of_the_model() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 224, 224, 3), np.uint8)
    assert np.array_equal(read_served(described()).make_input(frames), frames[None])
    classic = read_served(described(datatype="FP32")).make_input(frames)
    assert classic.shape == (1, 3, 9, 224, 224) and classic.dtype == np.float32
    assert (classic.min(), classic.max()) == (-1, 1)


def test_labels_are_read_with_classify_only() -> None:
    transport = fake(PRESETS["bsl1k"])
    asyncio.run(read_model(transport))
    assert transport.calls == []
