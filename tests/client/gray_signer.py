"""A signer in shades of gray, and a fake model that recognizes the shades: live recognition without a network."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from asl_triton.errors import ServerError
from asl_triton.presets import PRESETS, Preset
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from tests.client.served import GLOSSES, described

REST = 100  # gray level of a signer whose hands are down
SEEN_SHARE = 0.6  # of a step's frames: what the demo checkpoint was trained to recognize
SURE, UNSURE, WEAK = 6.0, 1.0, -1.0  # logits: confidences of 0.998, 0.73 and 0.27
Plan = Sequence[tuple[str | None, float]]  # glosses, and how many seconds each is signed


def shade(gloss: str | None) -> int:
    """Return the gray level of a gloss: close enough to `REST` not to look like a cut."""
    return REST if gloss is None else REST + GLOSSES.index(gloss) + 1


def picture(gloss: str | None, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Return a BGR frame of a gloss."""
    return np.full((*size, 3), shade(gloss), np.uint8)


def frames(plan: Plan, rate: float = 25.0, start_s: float = 0.0) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the frames of a plan and their times."""
    for number in range(round(sum(seconds for _, seconds in plan) * rate)):
        time_s = left_s = number / rate
        for gloss, seconds in plan:
            if left_s < seconds:
                yield picture(gloss), start_s + time_s
                break
            left_s -= seconds


@dataclass
class Observer(FakeTransport):
    """Recognizes glosses by their shades, with logit `certainty`.

    Requests wait while `gate` is not set, and fail while `is_away` is true.
    """

    certainty: float = SURE
    gate: asyncio.Event | None = None
    is_away: bool = False
    at_once: int = 0
    most_at_once: int = 0
    newest: list[int] = field(default_factory=list)  # the shade of each request's last frame

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> dict[str, Array]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.newest.append(int(inputs["FRAMES__0"][0, -1, 0, 0, 0]))
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.is_away:
                raise ServerError(f"no server answers at {self.address}")
            return await super().infer(model, inputs, outputs, priority)
        finally:
            self.at_once -= 1

    async def describe(self, model: str):  # type: ignore[no-untyped-def]
        if self.is_away:
            raise ServerError(f"no server answers at {self.address}")
        return await super().describe(model)


def observer(preset: Preset = PRESETS["wlasl"], certainty: float = SURE) -> Observer:
    """Build a server with one model of `GLOSSES`."""

    def outputs(_model: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        shades = inputs["FRAMES__0"][0, :, 0, 0, 0]  # (T,)
        is_gloss = shades[:, None] == [shade(gloss) for gloss in GLOSSES]  # (T, C)
        steps = max(math.ceil(len(shades) / 8) - 1, 1)
        shares = np.stack([is_gloss[8 * s : 8 * s + 16].mean(axis=0) for s in range(steps)])  # (S, C)
        logits = np.where(shares >= SEEN_SHARE, served.certainty, -8.0).astype(np.float32)
        in_order = -np.arange(len(GLOSSES), dtype=np.float32)
        return {"LOGITS__0": in_order[None], "STEP_LOGITS__1": logits[None]}

    served = Observer({"signs": described(preset)}, GLOSSES, outputs, certainty=certainty)
    return served
