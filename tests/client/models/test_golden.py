"""The golden clip, which must never change, and golden answers."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest

from asl_triton.errors import ContractError
from asl_triton.models.golden import GOLDEN_FRAMES, GoldenAnswer, render_golden

CHECKSUM = 1881818799  # CRC-32 of the frames' bytes


def test_golden_clip_is_the_same_on_every_machine() -> None:
    frames = render_golden()
    assert frames.shape == (GOLDEN_FRAMES, 224, 224, 3) and frames.dtype == np.uint8
    assert zlib.crc32(frames.tobytes()) == CHECKSUM
    assert np.array_equal(render_golden(9), frames[:9])


def test_golden_clip_moves_and_spans_all_levels() -> None:
    frames = render_golden()
    assert (frames.min(), frames.max()) == (0, 255)
    assert all((frames[t] != frames[t + 1]).mean() > 0.9 for t in range(GOLDEN_FRAMES - 1))


def test_answer_round_trips_through_its_file(tmp_path: Path) -> None:
    logits = np.arange(5, dtype=np.float32)
    GoldenAnswer(logits, logits + 1, 32, 0.25).save(tmp_path / "golden.npz")
    golden = GoldenAnswer.load(tmp_path / "golden.npz")
    assert np.array_equal(golden.logits, logits) and np.array_equal(golden.served_logits, logits + 1)
    assert (golden.num_frames, golden.tolerance) == (32, 0.25)


def encode_array() -> bytes:
    """Return a bare array as `np.save` writes it, without an archive."""
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", encode_array()])
def test_invalid_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    with pytest.raises(ContractError, match="is not a golden answer"):
        GoldenAnswer.load(path)


def test_incomplete_or_missing_answer_is_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", logits=np.zeros(3))
    for name in ("golden.npz", "nowhere.npz"):
        with pytest.raises(ContractError, match="export the model again"):
            GoldenAnswer.load(tmp_path / name)
