"""The golden clip, which anyone can render bit for bit, and the known answers to it that served models must give."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from asl_triton.errors import ContractError
from asl_triton.presets import INPUT_SIZE, Preset

GOLDEN_FRAMES = 32
TILE = 16  # pixels


def render_golden(num_frames: int = GOLDEN_FRAMES) -> npt.NDArray[np.uint8]:
    """Render drifting, fading tiles of color, uint8 RGB (T, 224, 224, 3), with integer arithmetic only."""
    tiles = INPUT_SIZE // TILE
    t, y, x, c = np.meshgrid(
        np.arange(num_frames, dtype=np.int64), np.arange(tiles), np.arange(tiles), np.arange(3), indexing="ij"
    )
    phase = 37 * x + 59 * y + 83 * c + (x * y) % 7 * 29 + t * (3 + (x + 2 * y + c) % 5)
    fade = np.abs(phase % 510 - 255)  # a triangle wave, 0 to 255
    frames: npt.NDArray[np.uint8] = fade.astype(np.uint8).repeat(TILE, axis=1).repeat(TILE, axis=2)
    return frames  # (T, 14, 14, 3) -> (T, 224, 224, 3)


def choose_golden_frames(preset: Preset) -> int:
    """Return how many frames of the golden clip to send to a model with this preset."""
    return min(max(GOLDEN_FRAMES, preset.min_frames), preset.max_frames)


@dataclass(frozen=True)
class GoldenAnswer:
    """A checkpoint's answer to the golden clip, stored as `golden.npz` in its model folder.

    `logits` (C,) come from the network as trained, in float32, and `served_logits` (C,) from the exported model on the
    machine that exported it. `tolerance` is how far, in logits, another machine's answer may differ.
    """

    logits: npt.NDArray[np.float32]
    served_logits: npt.NDArray[np.float32]
    num_frames: int
    tolerance: float

    def save(self, path: Path) -> None:
        """Write the answer to an `.npz` file."""
        np.savez(
            path,
            logits=self.logits,
            served_logits=self.served_logits,
            num_frames=self.num_frames,
            tolerance=self.tolerance,
        )

    @classmethod
    def load(cls, path: Path) -> "GoldenAnswer":
        """Read what `save` wrote.

        Raises:
            ContractError: the file does not exist, or is not a golden answer.
        """
        try:
            with path.open("rb") as file:
                arrays = np.load(file, allow_pickle=False)
                return cls(
                    arrays["logits"], arrays["served_logits"], int(arrays["num_frames"]), float(arrays["tolerance"])
                )
        except (OSError, ValueError, TypeError, LookupError, EOFError, BadZipFile) as exc:
            raise ContractError(f"{path} is not a golden answer ({exc}): export the model again") from exc
