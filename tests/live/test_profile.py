"""The profile of processor time per clip, on a few clips."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks import profile
from tests.benchmarks.profile import CpuTime, build_profile, find_stage, format_table


@pytest.mark.parametrize(("stack", "stage"), [
    ("process 1;main (a.py:1);FrameDecoder.decode_next (asl_triton/video/decoder.py:54)", "decode"),
    ("process 1;FrameDecoder.decode_next (asl_triton/video/decoder.py:50);"
     "FrameDecoder._read_packet (asl_triton/video/decoder.py:83)", "demux"),
    ("process 1;process 2;crop_frame (asl_triton/video/preprocessing.py:95);"
     "resize_image (asl_triton/video/preprocessing.py:177)", "resize"),
    ("process 1;Journal.append (asl_triton/batch/journal.py:120);dumps (json/__init__.py:1)", "write"),
    ("process 1;something (else.py:1)", "other"),
])  # fmt: skip
def test_stage_is_taken_from_the_innermost_known_function(stack: str, stage: str) -> None:
    assert find_stage(stack) == stage


def test_samples_are_scaled_to_processor_time() -> None:
    crop, decode = "crop_frame (asl_triton/video/preprocessing.py:1)", "decode_next (asl_triton/video/decoder.py:1)"
    stacks = Counter({f"process 1;{crop}": 4, f"process 1;process 2;{crop}": 1, f"process 1;process 2;{decode}": 3})
    found = build_profile("batch", 10, stacks, CpuTime(python_s=1.0, native_s=0.5, below_s=2.0), {"Triton": 7.0})
    assert found.stages_ms == pytest.approx({"decode": 150.0, "crop": 150.0, "send": 50.0})
    assert "| decode | 150.00 | 43% |" in format_table(found) and "Triton | 7.00" in format_table(found)


def test_batch_and_recognize_sign_are_profiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_folder: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [
        "profile", "--clips", "32", "--videos", str(shared_folder / "wlasl" / "videos"), "--output", str(tmp_path),
    ])  # fmt: skip
    profile.main()
    profiles = json.loads((tmp_path / "profile.json").read_text())
    assert [one["way"] for one in profiles] == ["batch", "recognize_sign"]
    assert all(one["samples"] > 0 and one["stages_ms"]["decode"] > 0 for one in profiles)
    assert "| decode |" in (tmp_path / "profile.md").read_text()
    assert all("<svg" in (tmp_path / f"{one['way']}.svg").read_text() for one in profiles)
