"""Fake servers and fake models."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from asl_triton.presets import PRESETS, Preset
from asl_triton.transport.base import Array, ModelDescription, TensorSpec
from asl_triton.transport.fake import FakeTransport

GLOSSES = ("book", "drink", "hello", "help", "home", "mother")
Answer = Callable[[Array], Sequence[float] | Array]


def described(
    preset: Preset = PRESETS["wlasl"], name: str = "signs", datatype: str = "UINT8", **parameters: str
) -> ModelDescription:
    """Build Triton's description of a model of `GLOSSES`."""
    frames = (-1, -1, 224, 224, 3) if datatype == "UINT8" else (-1, 3, -1, 224, 224)
    return ModelDescription(
        name=name,
        version="1",
        inputs={"FRAMES__0": TensorSpec(datatype, frames)},
        outputs={
            "LOGITS__0": TensorSpec("FP32", (-1, len(GLOSSES))),
            "STEP_LOGITS__1": TensorSpec("FP32", (-1, -1, len(GLOSSES))),
            "FEATURES__2": TensorSpec("FP32", (-1, 1024)),
        },
        parameters={"asl_triton.preset": preset.to_json(), "asl_triton.precision": "fp32", **parameters},
        labeled=frozenset({"LOGITS__0"}),
        max_batch_size=8,
    )


def in_order(_tensor: Array) -> Sequence[float]:
    """Return logits that rank the glosses in class order."""
    return [float(-c) for c in range(len(GLOSSES))]


def fake(preset: Preset = PRESETS["wlasl"], answer: Answer = in_order, datatype: str = "UINT8") -> FakeTransport:
    """Build a server with one model, `signs`. `answer` maps its input, without the batch axis, to logits (6,)."""
    return faking(FakeTransport, preset, answer, datatype)


def faking(
    kind: type[FakeTransport],
    preset: Preset = PRESETS["wlasl"],
    answer: Answer = in_order,
    datatype: str = "UINT8",
) -> FakeTransport:
    """Like `fake`, with a subclass of `FakeTransport`."""
    return kind({"signs": described(preset, datatype=datatype)}, GLOSSES, answering(answer))


def answering(answer: Answer) -> Callable[[str, Mapping[str, Array]], Mapping[str, Array]]:
    """Turn a function from frames to logits into the `answer` of a `FakeTransport`."""

    def outputs(_model: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"LOGITS__0": np.asarray(answer(inputs["FRAMES__0"][0]), np.float32)[None]}

    return outputs


@dataclass
class LastFirst(FakeTransport):
    """Holds requests until there are `together` of them, then answers the last one first."""

    together: int = 4
    held: list[asyncio.Event] = field(default_factory=list)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        answer = await super().infer(model, inputs, outputs, priority, parameters)
        turn = asyncio.Event()
        self.held.append(turn)
        if len(self.held) == self.together:
            self.held.pop().set()
        await turn.wait()
        if self.held:
            self.held.pop().set()
        return answer


@dataclass
class Gauge(FakeTransport):
    """Counts the concurrent requests."""

    at_once: int = 0
    most_at_once: int = 0

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for _ in range(20):  # let other requests arrive
                await asyncio.sleep(0)
            return await super().infer(model, inputs, outputs, priority, parameters)
        finally:
            self.at_once -= 1


@dataclass
class Stuck(FakeTransport):
    """Never answers an inference. Calls `come` when one arrives and `given_up` when it is canceled."""

    come: Callable[[], None] = lambda: None
    given_up: Callable[[], None] = lambda: None

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.come()
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up()
        raise AssertionError("the event is never set")


def fake_steps(answer: Callable[[Array], Array], preset: Preset = PRESETS["wlasl"]) -> FakeTransport:
    """Build a server whose `answer` maps input (T, 224, 224, 3) to step logits (S, 6); the logits are their max."""

    def outputs(_model: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        steps = np.asarray(answer(inputs["FRAMES__0"][0]), np.float32)
        return {"STEP_LOGITS__1": steps[None], "LOGITS__0": steps.max(axis=0)[None]}

    return FakeTransport({"signs": described(preset)}, GLOSSES, outputs)


def bright(frames: Array) -> Array:
    """Return step logits (S, 6) in which `book` grows with the mean brightness of the step's 16 frames.

    Its logit is 0 at level 100, -5 for black and 7.75 for white frames. The other glosses never appear.
    """
    levels = frames[:, ::32, ::32].reshape(len(frames), -1).mean(axis=1)  # a few pixels are enough for plain frames
    num_steps = max(-(-len(frames) // 8) - 1, 1)
    logits = np.full((num_steps, len(GLOSSES)), -20.0)
    logits[:, 0] = [(levels[8 * step : 8 * step + 16].mean() - 100) / 20 for step in range(num_steps)]
    return logits
