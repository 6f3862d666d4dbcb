"""The model folder is complete or absent, and meets the contract."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from asl_triton.errors import AslTritonError, CheckpointError
from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton.models.golden import GoldenAnswer, render_golden
from asl_triton.models.repository import read_folder
from asl_triton.presets import PRESETS, Preset
from asl_triton_export.checkpoint import Checkpoint, load_checkpoint
from asl_triton_export.exporter import export_model
from asl_triton_export.formats import torchscript
from tests.exports import find_local_paths
from tests.networks import GLOSSES, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("weights") / "small.pt"))


def read_config(path: Path) -> pb.ModelConfig:
    return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())


def test_folder_meets_the_whole_contract(checkpoint: Checkpoint, tmp_path: Path) -> None:
    report = export_model(checkpoint, GLOSSES, PRESETS["bsl1k"], tmp_path, "small")
    folder = tmp_path / "small"
    assert report.folder == folder and report.same_best
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert written == {
        "config.pbtxt", "configs/cpu.pbtxt", "configs/wheel.pbtxt", "labels.txt", "golden.npz",
        "1/model.pt", "1/model.py",
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert [find_local_paths(folder / file) for file in written] == [[]] * len(written)
    assert (folder / "labels.txt").read_text().splitlines() == list(GLOSSES)
    golden = GoldenAnswer.load(folder / "golden.npz")
    with torch.inference_mode():
        logits = torch.jit.load(folder / "1" / "model.pt")(torch.from_numpy(render_golden(golden.num_frames))[None])[0]
    assert np.abs(logits[0].numpy() - golden.logits).max() <= golden.tolerance


def test_version_is_the_name_of_its_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small", version=2)
    assert sorted(path.name for path in (tmp_path / "small").iterdir() if path.is_dir()) == ["2", "configs"]
    assert {path.name for path in (tmp_path / "small" / "2").iterdir()} == {"model.pt", "model.py"}


def test_card_is_in_every_config_unless_it_is_empty(checkpoint: Checkpoint, tmp_path: Path) -> None:
    card = ModelCard(purpose='seven signs, "quoted", \N{WAVING HAND SIGN}', caveat="small", min_confidence=0.42)
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "carded", card=card)
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "plain")
    for file in ("config.pbtxt", "configs/cpu.pbtxt", "configs/wheel.pbtxt"):
        parameters = {k: v.string_value for k, v in read_config(tmp_path / "carded" / file).parameters.items()}
        assert ModelCard.from_parameters(parameters) == card
        plain = set(read_config(tmp_path / "plain" / file).parameters)
        assert set(parameters) - plain == {"asl_triton.purpose", "asl_triton.caveat", "asl_triton.min_confidence"}
    assert read_folder(tmp_path / "carded").served.card == card
    assert read_folder(tmp_path / "plain").served.card == EMPTY_CARD


@pytest.mark.parametrize(
    ("file", "backend"),
    [("config.pbtxt", "pytorch"), ("configs/cpu.pbtxt", "pytorch"), ("configs/wheel.pbtxt", "python")],
)
def test_all_configs_state_the_same_contract(checkpoint: Checkpoint, tmp_path: Path, file: str, backend: str) -> None:
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small", instances=3)
    config = read_config(tmp_path / "small" / file)
    assert config.backend == backend
    assert [group.count for group in config.instance_group] == [3]
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("FRAMES__0", pb.TYPE_UINT8, [-1, 224, 224, 3])
    ]
    assert [(o.name, o.data_type, list(o.dims), o.label_filename) for o in config.output] == [
        ("LOGITS__0", pb.TYPE_FP32, [7], "labels.txt"),
        ("STEP_LOGITS__1", pb.TYPE_FP32, [-1, 7], ""),
        ("FEATURES__2", pb.TYPE_FP32, [64], ""),
    ]
    queue = config.dynamic_batching
    assert queue.priority_levels == 2
    assert queue.default_queue_policy.max_queue_size > 0
    assert queue.default_queue_policy.default_timeout_microseconds > 0
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert Preset.from_json(parameters["asl_triton.preset"]) == PRESETS["wlasl"]
    assert parameters["asl_triton.checkpoint_sha256"] == checkpoint.sha256
    assert parameters["asl_triton.precision"] == "fp32"
    assert "torch" in parameters["asl_triton.exporter"]


def test_gpus_warm_up_every_batch_size_and_cpus_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small")
    config = read_config(tmp_path / "small" / "config.pbtxt")
    assert [w.batch_size for w in config.model_warmup] == list(range(1, config.max_batch_size + 1))
    on_cpus = read_config(tmp_path / "small" / "configs" / "cpu.pbtxt")
    assert [w.batch_size for w in on_cpus.model_warmup] == [1]
    # Nothing else differs, and the backend has only these two parameters.
    del config.model_warmup[1:]
    assert on_cpus == config
    ours = {key for key in config.parameters if key.startswith("asl_triton.")}
    assert set(config.parameters) - ours == {"INFERENCE_MODE", "DISABLE_OPTIMIZED_EXECUTION"}


def test_golden_clip_has_a_length_that_the_preset_accepts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    long = replace(PRESETS["wlasl"], min_frames=48, window_frames=48)
    short = replace(PRESETS["wlasl"], window_frames=16, stride_frames=8, max_frames=24)
    for name, preset, num_frames in (("long", long, 48), ("short", short, 24)):
        export_model(checkpoint, GLOSSES, preset, tmp_path, name)
        assert GoldenAnswer.load(tmp_path / name / "golden.npz").num_frames == num_frames


def test_fp32_input_has_the_classic_signature(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small", input_type="fp32")
    frames = read_config(tmp_path / "small" / "config.pbtxt").input[0]
    assert (frames.data_type, list(frames.dims)) == (pb.TYPE_FP32, [3, -1, 224, 224])


def test_existing_model_is_kept_unless_forced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small")
    with pytest.raises(AslTritonError, match="--force"):
        export_model(checkpoint, GLOSSES, PRESETS["bsl1k"], tmp_path, "small")
    assert "bsl1k" not in (tmp_path / "small" / "config.pbtxt").read_text()
    export_model(checkpoint, GLOSSES, PRESETS["bsl1k"], tmp_path, "small", force=True)
    assert "bsl1k" in (tmp_path / "small" / "config.pbtxt").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_wrong_export_is_not_written_and_the_old_one_stays(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small")
    before = (tmp_path / "small" / "config.pbtxt").read_bytes()
    original = torchscript.ServedI3D

    def broken(*arguments, **named):
        served = original(*arguments, **named)
        torch.nn.init.zeros_(served.mixed_3[0].b1b.weight)
        return served

    monkeypatch.setattr(torchscript, "ServedI3D", broken)
    with pytest.raises(CheckpointError, match="logits differ"):
        export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert (tmp_path / "small" / "config.pbtxt").read_bytes() == before


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "-dash", "a b", "ü"])
def test_invalid_model_name_is_refused(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    with pytest.raises(AslTritonError, match="is not a valid model name"):
        export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, name)


def test_optical_flow_is_refused(tmp_path: Path) -> None:
    flow = load_checkpoint(save_checkpoint(tmp_path / "flow.pt", channels=2))
    with pytest.raises(CheckpointError, match="only RGB"):
        export_model(flow, GLOSSES, PRESETS["wlasl"], tmp_path, "flow")


def test_unwritable_repository_is_reported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AslTritonError, match="cannot write"):
        export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path / "file", "small")
