"""The trained network and its exports match the answers of the original in `shared/reference/expected.npz`."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from asl_triton.models.served import LOGITS, STEP_LOGITS
from asl_triton.presets import PRESETS
from asl_triton.video.preprocessing import crop_frames
from asl_triton.video.reader import open_video
from asl_triton.video.windows import cut_windows
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.formats.openvino import build_graph, compile_model
from asl_triton_export.formats.torchscript import ServedI3D
from asl_triton_export.i3d import I3D, normalize

Noise = Callable[[int], np.ndarray]
Ask = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # uint8 RGB (T, 224, 224, 3) to logits (C,), steps (S, C)
FORMATS = ("torchscript", "openvino")
CLIPS = ("07068", "07069")  # 68 and 30 frames: the second becomes odd when halved


@pytest.fixture(scope="module")
def net(reference_checkpoint: Path) -> I3D:
    return load_checkpoint(reference_checkpoint).network()


@pytest.fixture(scope="module")
def served(net: I3D) -> Callable[[str, str, str], Ask]:
    """The exported network of a format, preset and precision."""

    @cache
    def build(served_as: str, preset: str, precision: str) -> Ask:
        return (build_torchscript if served_as == "torchscript" else build_openvino)(net, preset, precision)

    return build


def build_torchscript(net: I3D, preset: str, precision: str) -> Ask:
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    model = torch.jit.script(ServedI3D(net, PRESETS[preset], dtypes[precision]).eval())

    def ask(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            logits, step_logits, _ = model(torch.from_numpy(frames)[None])
        return logits[0].numpy(), step_logits[0].numpy()

    return ask


def build_openvino(net: I3D, preset: str, precision: str) -> Ask:
    model = compile_model(build_graph(net, PRESETS[preset]), precision)

    def ask(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answer = model(frames[None])
        return answer[LOGITS][0], answer[STEP_LOGITS][0]

    return ask


def read_clip(shared_folder: Path, clip: str, preset: str) -> np.ndarray:
    """Return the crops of a real clip: uint8 RGB (T, 224, 224, 3)."""
    with open_video(shared_folder / "wlasl" / "videos" / f"{clip}.mp4") as video:
        return np.stack([crop.image for crop in crop_frames(video, PRESETS[preset], max_frames=1000)])


@pytest.mark.parametrize("num_frames", [9, 16, 33, 65])
def test_trained_network_matches_the_original(
    net: I3D, noise: Noise, expected: Mapping[str, np.ndarray], num_frames: int
) -> None:
    with torch.inference_mode():
        output = net(normalize(torch.from_numpy(noise(num_frames))[None], PRESETS["wlasl"]))
    assert np.abs(output.step_logits[0].numpy() - expected[f"noise{num_frames}/wlasl"]).max() <= 1e-3


def test_every_array_of_the_reference_is_compared(expected: Mapping[str, np.ndarray]) -> None:
    answers = {key for key in expected if key.count("/") == 1}
    assert answers == {f"noise{t}/{p}" for t, p in NOISE} | {f"{c}/{p}" for c in CLIPS for p in CLIP_PRESETS} | {
        f"noise{t}/bsl1k" for t in WINDOWED
    }


NOISE = [
    (9, "wlasl"),
    (16, "wlasl"),
    (16, "asl-inference"),
    (33, "wlasl"),
    (64, "wlasl"),
    (65, "wlasl"),
    (100, "wlasl"),
]
CLIP_PRESETS = ("wlasl", "wlasl-test", "asl-inference")
WINDOWED = (40, 64, 100)


@pytest.mark.parametrize("served_as", FORMATS)
@pytest.mark.parametrize(("num_frames", "preset"), NOISE)
def test_float32_export_matches_the_original_on_noise(
    served, noise: Noise, expected: Mapping[str, np.ndarray], num_frames: int, preset: str, served_as: str
) -> None:
    _, step_logits = served(served_as, preset, "fp32")(noise(num_frames))
    assert np.abs(step_logits - expected[f"noise{num_frames}/{preset}"]).max() <= 1e-3


@pytest.mark.parametrize("served_as", FORMATS)
@pytest.mark.parametrize("num_frames", WINDOWED)
def test_float32_export_matches_the_original_in_windows(
    served, noise: Noise, expected: Mapping[str, np.ndarray], num_frames: int, served_as: str
) -> None:
    cut = cut_windows(iter(noise(num_frames)), PRESETS["bsl1k"])
    logits = np.stack([served(served_as, "bsl1k", "fp32")(window.frames)[0] for window in cut])
    assert np.abs(logits - expected[f"noise{num_frames}/bsl1k"]).max() <= 1e-3


@pytest.mark.parametrize("served_as", FORMATS)
@pytest.mark.parametrize("preset", CLIP_PRESETS)
@pytest.mark.parametrize("clip", CLIPS)
def test_float32_export_matches_the_original_on_real_clips(
    served, shared_folder: Path, expected: Mapping[str, np.ndarray], clip: str, preset: str, served_as: str
) -> None:
    frames = read_clip(shared_folder, clip, preset)
    original = expected[f"{clip}/{preset}"]
    logits, step_logits = served(served_as, preset, "fp32")(frames)
    assert np.abs(step_logits - original).max() <= 1e-3
    pooled = original.mean(axis=0) if preset == "asl-inference" else original.max(axis=0)
    assert np.abs(logits - pooled).max() <= 1e-3


@pytest.mark.parametrize(
    ("served_as", "precision", "in_common"),
    [("torchscript", "fp16", 9), ("torchscript", "bf16", 8), ("openvino", "bf16", 8)],
)
@pytest.mark.parametrize("clip", CLIPS)
def test_half_precision_ranks_like_the_original_on_real_clips(
    served,
    shared_folder: Path,
    expected: Mapping[str, np.ndarray],
    clip: str,
    served_as: str,
    precision: str,
    in_common: int,
) -> None:
    logits, _ = served(served_as, "wlasl", precision)(read_clip(shared_folder, clip, "wlasl"))
    original = expected[f"{clip}/wlasl"].max(axis=0)
    print(f"{clip} {served_as} {precision}: off by {np.abs(logits - original).max():.3f} of {np.ptp(original):.1f}")
    assert logits.argmax() == original.argmax()
    assert len(set(np.argsort(-logits)[:10]) & set(np.argsort(-original)[:10])) >= in_common
