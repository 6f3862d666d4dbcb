"""Finds a server's models, reads their presets, labels and tensors, and rejects models that are not ours."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from asl_triton.errors import ContractError, LabelsError
from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.transport.base import Array, ModelDescription, TensorSpec, Transport
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import normalize

PRESET_PARAMETER = "asl_triton.preset"  # a model that has it is one of ours
FRAMES, LOGITS, STEP_LOGITS, FEATURES = "FRAMES__0", "LOGITS__0", "STEP_LOGITS__1", "FEATURES__2"
INPUT_SHAPES = {"UINT8": (-1, -1, INPUT_SIZE, INPUT_SIZE, 3), "FP32": (-1, 3, -1, INPUT_SIZE, INPUT_SIZE)}


@dataclass(frozen=True)
class ServedModel:
    """A model as served. `labels` are in class order; `datatype` is its input's."""

    name: str
    version: str
    preset: Preset
    labels: tuple[str, ...]
    datatype: str
    precision: str
    checkpoint_sha256: str
    exporter: str
    card: ModelCard = EMPTY_CARD

    @classmethod
    def from_description(cls, description: ModelDescription, address: str) -> "ServedModel":
        """Make a model from its description, without labels, which descriptions do not list.

        `address` is the server or the folder that error messages name.

        Raises:
            ContractError: the tensors, the preset or the card do not match asl-triton's contract.
        """
        check_tensors(description, address)
        parameters = description.parameters
        try:
            preset = Preset.from_json(parameters.get(PRESET_PARAMETER, ""))
            card = ModelCard.from_parameters(parameters)
        except ContractError as exc:
            raise ContractError(f"{description.name} on {address}: {exc}") from exc
        return cls(
            name=description.name,
            version=description.version,
            preset=preset,
            labels=(),
            datatype=description.inputs[FRAMES].datatype,
            precision=parameters.get("asl_triton.precision", "unknown"),
            checkpoint_sha256=parameters.get("asl_triton.checkpoint_sha256", "unknown"),
            exporter=parameters.get("asl_triton.exporter", "unknown"),
            card=card,
        )

    @property
    def identity(self) -> dict[str, str]:
        """What answers depend on. Two models are the same, and answer the same, if their identities are equal."""
        return {
            "model": self.name,
            "checkpoint_sha256": self.checkpoint_sha256,
            "precision": self.precision,
            "preset": self.preset.to_json(),
            "labels_sha256": hashlib.sha256("\n".join(self.labels).encode()).hexdigest(),
        }

    def is_described_by(self, description: ModelDescription) -> bool:
        """Return whether a description matches this identity, apart from the labels, which descriptions do not list."""
        try:
            described = ServedModel.from_description(description, "")
        except ContractError:
            return False
        return replace(described, labels=self.labels).identity == self.identity

    @property
    def introduction(self) -> str:
        """The model's name and purpose in one line; empty if it does not state a purpose."""
        return f"{self.name}: {self.card.purpose}" if self.card.purpose else ""

    @property
    def bytes_per_value(self) -> int:
        """Bytes per value of the input."""
        return 1 if self.datatype == "UINT8" else 4

    def make_input(self, frames_thwc: Image) -> Array:
        """Convert uint8 RGB crops (T, 224, 224, 3) to this model's input, with a batch axis."""
        return (frames_thwc if self.datatype == "UINT8" else normalize(frames_thwc, self.preset))[None]

    def check_output(self, logits: Array, steps: tuple[int, ...], address: str) -> Array:
        """Check and return the logits (*steps, C) that this model at `address` answered with.

        Raises:
            ContractError: the logits have another shape, or are not finite.
        """
        if logits.shape != (*steps, len(self.labels)):
            raise ContractError(
                f"{self.name} on {address} answered with {' x '.join(map(str, logits.shape))} logits for "
                f"{len(self.labels)} glosses: it was changed meanwhile; try again"
            )
        if not np.isfinite(logits).all():
            raise ContractError(
                f"{self.name} on {address} answered with logits that are not finite: its weights are damaged or too "
                "large for its precision; export it again with --precision fp32"
            )
        return logits


async def list_models(transport: Transport) -> list[ModelDescription]:
    """Return the models of the server that have our preset, sorted by name."""
    described = [await transport.describe(name) for name in await transport.model_names()]
    return [model for model in described if PRESET_PARAMETER in model.parameters]


async def choose_model(transport: Transport, model: str | None) -> ModelDescription:
    """Return the model of that name, or the only one that is served.

    Raises:
        ContractError: no model is served, or several are and no name is given, or the named model is not ours.
    """
    if model is not None:
        try:
            description = await transport.describe(model)
        except ContractError as exc:
            names = ", ".join(m.name for m in await list_models(transport)) or "none"
            raise ContractError(f"{transport.address} serves no model {model!r}; its models: {names}") from exc
        if PRESET_PARAMETER not in description.parameters:
            raise ContractError(
                f"{model} on {transport.address} is not an asl-triton model: its config has no parameter "
                f"{PRESET_PARAMETER}. Export it with `asl-triton export`, or choose another one with --model "
                "(`asl-triton models` lists them)"
            )
        return description
    found = await list_models(transport)
    if not found:
        others = ", ".join(await transport.model_names()) or "nothing"
        raise ContractError(
            f"{transport.address} serves no asl-triton model (it serves {others}): add one to its model repository "
            "with `asl-triton export`"
        )
    if len(found) > 1:
        names = ", ".join(m.name for m in found)
        raise ContractError(f"{transport.address} serves {len(found)} models: choose one with --model ({names})")
    return found[0]


async def read_model(transport: Transport, model: str | None = None) -> ServedModel:
    """Read and check the contract of a model. Sends it one request, for its labels.

    Raises:
        ContractError: no model can be chosen, or its tensors or preset do not match asl-triton's contract.
        LabelsError: the model does not have a label for each class.
    """
    description = await choose_model(transport, model)
    served = ServedModel.from_description(description, transport.address)
    return replace(served, labels=await read_served_labels(transport, served, description))


def check_tensors(model: ModelDescription, address: str) -> None:
    """Check names, datatypes and shapes of a model's tensors.

    Raises:
        ContractError: they do not match asl-triton's contract.
    """

    def wrong(what: str) -> ContractError:
        return ContractError(f"{model.name} on {address} does not match asl-triton's contract: {what}. Export it again")

    frames = model.inputs.get(FRAMES)
    if frames is None or len(model.inputs) != 1:
        raise wrong(f"its inputs are {', '.join(model.inputs) or 'none'}, not {FRAMES} alone")
    if frames.datatype not in INPUT_SHAPES or frames.shape != INPUT_SHAPES[frames.datatype]:
        shapes = " or ".join(format_spec(TensorSpec(*item)) for item in INPUT_SHAPES.items())
        raise wrong(f"{FRAMES} is {format_spec(frames)}, not {shapes}")
    logits, steps = model.outputs.get(LOGITS), model.outputs.get(STEP_LOGITS)
    if logits is None or logits.datatype != "FP32" or len(logits.shape) != 2 or logits.shape[1] < 1:
        raise wrong(f"{LOGITS} is {format_spec(logits)}, not FP32 [-1, classes]")
    if steps is None or steps.datatype != "FP32" or steps.shape != (-1, -1, logits.shape[1]):
        raise wrong(f"{STEP_LOGITS} is {format_spec(steps)}, not FP32 [-1, -1, {logits.shape[1]}]")


def count_classes(model: ModelDescription) -> int:
    """Return the number of classes of a model whose tensors were checked."""
    return model.outputs[LOGITS].shape[1]


def format_spec(spec: TensorSpec | None) -> str:
    """Format a tensor for an error message."""
    return "missing" if spec is None else f"{spec.datatype} {list(spec.shape)}"


async def read_served_labels(
    transport: Transport, served: ServedModel, description: ModelDescription
) -> tuple[str, ...]:
    """Read the labels in class order, by classifying a black clip over all classes."""
    num_classes = count_classes(description)
    if LOGITS not in description.labeled:
        raise LabelsError(f"{served.name} on {transport.address} has no labels: export it again")
    black = np.zeros((served.preset.min_frames, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    ranked = await transport.classify(served.name, {FRAMES: served.make_input(black)}, LOGITS, num_classes)
    labels = dict(ranked)
    missing = [index for index in range(num_classes) if not labels.get(index)]
    if missing:
        raise LabelsError(
            f"{served.name} on {transport.address} has {num_classes} classes, but {len(missing)} of them have no label "
            f"(the first is class {missing[0]}): its labels.txt is too short; export it again"
        )
    return tuple(labels[index] for index in range(num_classes))
