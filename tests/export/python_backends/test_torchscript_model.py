"""The model for Triton's Python backend, tested without Triton."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import asl_triton_export
from asl_triton.presets import PRESETS

WHEEL_MODEL = Path(asl_triton_export.__file__).parent / "python_backends" / "torchscript_model.py"


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("counts", "threads"), [([1], 4), ([2], 2), ([3], 1), ([8], 1), ([1, 1], 2)])
def test_instances_on_a_cpu_share_its_threads(
    four_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int], threads: int
) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    (tmp_path / "1").mkdir()
    torch.jit.script(torch.nn.Identity()).save(tmp_path / "1" / "model.pt")
    config = {
        "input": [{"name": "FRAMES__0"}],
        "output": [{"name": "LOGITS__0"}],
        "instance_group": [{"count": count} for count in counts],
        "parameters": {"asl_triton.preset": {"string_value": PRESETS["wlasl"].to_json()}},
    }
    model = runpy.run_path(str(WHEEL_MODEL))["TritonPythonModel"]()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_repository": str(tmp_path),
            "model_version": "1",
        }
    )
    assert torch.get_num_threads() == threads
