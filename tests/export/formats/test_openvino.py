"""The format for CPUs: the graph compared with the trained network, and loading as in Triton's OpenVINO backend."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from asl_triton.errors import AslTritonError
from asl_triton.extras import format_install_command
from asl_triton.models.golden import GoldenAnswer, render_golden
from asl_triton.models.served import FEATURES, LOGITS, STEP_LOGITS
from asl_triton.presets import PRESETS, Preset
from asl_triton_export.checkpoint import Checkpoint, load_checkpoint
from asl_triton_export.exporter import export_model
from asl_triton_export.formats.openvino import build_graph, compile_model, get_core, openvino
from asl_triton_export.i3d import I3D, normalize, pool_steps
from tests.command_line import asl_triton
from tests.exports import find_local_paths
from tests.networks import GLOSSES, build_small_network, save_checkpoint

TYPES = {pb.TYPE_UINT8: openvino.Type.u8, pb.TYPE_FP32: openvino.Type.f32}


@pytest.fixture(scope="module")
def net() -> I3D:
    return build_small_network()


@pytest.fixture(scope="module")
def engine(net: I3D) -> openvino.CompiledModel:
    return compile_model(build_graph(net, PRESETS["wlasl"]), "fp32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("weights") / "small.pt"))


def make_clip(num_frames: int) -> torch.Tensor:
    """Return random frames: uint8 RGB (T, 224, 224, 3)."""
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(0, 256, (num_frames, 224, 224, 3), dtype=torch.uint8, generator=generator)


def measure_difference(
    net: I3D, engine: Callable[..., dict], preset: Preset, frames: torch.Tensor, normalized: bool = False
) -> float:
    """Return the largest difference of logits, steps and features from the trained network's."""
    x = normalize(frames[None], preset)
    with torch.inference_mode():
        trained = net(x)
        expected = {
            LOGITS: pool_steps(net, trained.step_logits, trained.features, preset),
            STEP_LOGITS: trained.step_logits,
            FEATURES: trained.features.mean(dim=2),
        }
    answer = engine((x if normalized else frames[None]).numpy())
    assert {name: answer[name].shape for name in expected} == {name: tuple(w.shape) for name, w in expected.items()}
    return max(float(np.abs(answer[name] - w.numpy()).max()) for name, w in expected.items())


@pytest.mark.parametrize("num_frames", [*range(9, 18), 23, 24, 25, 31, 33, 63, 65, 70, 150])
def test_one_graph_is_exact_for_every_length(net: I3D, engine: openvino.CompiledModel, num_frames: int) -> None:
    assert measure_difference(net, engine, PRESETS["wlasl"], make_clip(num_frames)) < 1e-4


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_every_preset_is_exact_with_either_input(net: I3D, preset: Preset, normalized: bool) -> None:
    engine = compile_model(build_graph(net, preset, normalized_input=normalized), "fp32")
    assert measure_difference(net, engine, preset, make_clip(19), normalized) < 1e-4


def test_clips_of_a_batch_do_not_mix(engine: openvino.CompiledModel) -> None:
    pair = torch.stack([make_clip(16), make_clip(16).flip(0)]).numpy()
    together = engine(pair)[LOGITS]
    apart = np.concatenate([engine(one[None])[LOGITS] for one in pair])
    assert np.allclose(together, apart, atol=1e-5)


def read_config(path: Path) -> pb.ModelConfig:
    return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())


@pytest.mark.parametrize(("precision", "backend", "own"), [
    ("fp32", "python", {}),
    ("bf16", "openvino", {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "2", "HINT_BF16": "YES"}),
])  # fmt: skip
def test_folder_meets_the_whole_contract(
    checkpoint: Checkpoint, tmp_path: Path, precision: str, backend: str, own: dict[str, str]
) -> None:
    options = {"precision": precision, "served_as": "openvino", "instances": 2}
    report = export_model(checkpoint, GLOSSES, PRESETS["bsl1k"], tmp_path, "small", **options)
    folder = tmp_path / "small"
    assert report.folder == folder and report.same_best and report.cost is None
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert written == {
        "config.pbtxt", "configs/wheel.pbtxt", "labels.txt", "golden.npz", "1/model.xml", "1/model.bin", "1/model.py"
    }  # fmt: skip
    assert [find_local_paths(folder / file) for file in written] == [[]] * len(written)
    config, wheel = (read_config(folder / file) for file in ("config.pbtxt", "configs/wheel.pbtxt"))
    assert (config.backend, wheel.backend) == (backend, "python")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert {key: value for key, value in parameters.items() if not key.startswith("asl_triton.")} == own
    assert parameters["asl_triton.precision"] == precision
    assert "openvino" in parameters["asl_triton.exporter"]
    for each in (config, wheel):
        assert [(group.kind, group.count) for group in each.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 2)]
        assert each.max_batch_size == 1
        assert [warmup.batch_size for warmup in each.model_warmup] == [1]
    golden = GoldenAnswer.load(folder / "golden.npz")
    logits = compile_model(folder / "1" / "model.xml", precision)(render_golden(golden.num_frames)[None])[LOGITS]
    assert np.abs(logits[0] - golden.logits).max() <= golden.tolerance


@pytest.mark.parametrize("input_type", ["uint8", "fp32"])
def test_tritons_openvino_backend_can_load_the_model(checkpoint: Checkpoint, tmp_path: Path, input_type: str) -> None:
    """Do what that backend does to load a graph: set datatypes, compare shapes with the config, fix the batch size."""
    options = {"precision": "bf16", "served_as": "openvino", "input_type": input_type}
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small", **options)
    config = read_config(tmp_path / "small" / "config.pbtxt")
    graph = get_core().read_model(tmp_path / "small" / "1" / "model.xml")
    shapes = {port.any_name: port.partial_shape for port in (*graph.inputs, *graph.outputs)}
    steps = openvino.preprocess.PrePostProcessor(graph)
    for tensor in config.input:
        assert str(openvino.PartialShape([-1, *tensor.dims])) == str(shapes[tensor.name])
        steps.input(tensor.name).tensor().set_element_type(TYPES[tensor.data_type])
        steps.input(tensor.name).tensor().set_layout(openvino.Layout("N..."))
    graph = steps.build()
    openvino.set_batch(graph, config.max_batch_size)
    steps = openvino.preprocess.PrePostProcessor(graph)
    for tensor in config.output:
        assert str(openvino.PartialShape([-1, *tensor.dims])) == str(shapes[tensor.name])
        steps.output(tensor.name).tensor().set_element_type(TYPES[tensor.data_type])
    engine = compile_model(steps.build(), "bf16")
    golden = GoldenAnswer.load(tmp_path / "small" / "golden.npz")
    frames = render_golden(golden.num_frames)[None]
    if input_type == "fp32":
        frames = normalize(torch.from_numpy(frames), PRESETS["wlasl"]).numpy()
    assert np.abs(engine(frames)[LOGITS][0] - golden.served_logits).max() <= golden.tolerance


@pytest.mark.parametrize(("options", "says"), [
    ({"served_as": "openvino", "precision": "fp16"}, "supports fp32, bf16, int8, not fp16"),
    ({"served_as": "torchscript", "precision": "int8"}, "supports fp32, fp16, bf16, not int8.*--format openvino"),
    ({"served_as": "openvino", "precision": "int8"}, "--calibrate"),
    ({"served_as": "openvino", "precision": "bf16", "calibrate": Path("clips")}, "bf16 does not need clips"),
    ({"served_as": "openvino", "precision": "int8", "calibrate": Path("nowhere")}, "there is no folder nowhere"),
])  # fmt: skip
def test_incompatible_options_are_reported(
    checkpoint: Checkpoint, tmp_path: Path, options: dict[str, object], says: str
) -> None:
    with pytest.raises(AslTritonError, match=says):
        export_model(checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path, "small", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "options"), [
    ("openvino", ["--format", "openvino"]),
    ("nncf", ["--format", "openvino", "--precision", "int8", "--calibrate", "."]),
])  # fmt: skip
def test_missing_package_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    options: list[str],
) -> None:
    for name in [name for name in sys.modules if name.startswith(("asl_triton_export.formats.openvino", f"{module}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "asl_triton_export.quantization.nncf", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    done = asl_triton(capsys, "export", "demo", "--repository", tmp_path / "models", *options)
    assert done.code == 1
    assert (
        f"needs the Python module '{module}', which is not installed: {format_install_command('openvino')}"
        in done.output
    )
    assert not (tmp_path / "models").exists()


def test_openvino_sends_no_telemetry() -> None:
    code = (
        "import asl_triton_export.formats.openvino, asl_triton_export.quantization.nncf, sys\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_ctrl_c_is_handled_after_engines_are_deleted() -> None:
    code = (
        "import faulthandler, gc, signal, numpy as np\n"
        "from asl_triton_export.formats.openvino import compile_model, openvino, ops\n"
        "faulthandler.enable()\n"
        "def make():\n"
        "    frames = ops.parameter([1, 3], np.float32)\n"
        "    return openvino.Model([ops.relu(frames)], [frames], 'small')\n"
        "one, other = compile_model(make(), 'fp32'), compile_model(make(), 'fp32')\n"
        "del one; gc.collect()\n"
        "del other; gc.collect()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('handled'))\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
