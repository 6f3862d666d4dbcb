"""`batch`, `models` and `doctor` against a real Triton, including common mistakes."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from asl_triton.models.golden import render_golden
from asl_triton.presets import PRESETS
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.transport.factory import make_transport
from asl_triton.transport.triton_grpc import BULK_PRIORITY
from asl_triton.video.preprocessing import normalize
from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.ports import claim_ports
from tests.client.videos import clip
from tests.command_line import asl_triton
from tests.exports import copy_model
from tests.live.conftest import FOREIGN_CODE, write_clip, write_stranger
from tests.local_triton import serve
from tests.networks import GLOSSES

Capture = pytest.CaptureFixture[str]


def test_batch_writes_clips_sorted_by_name(
    small_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "out"
    done = asl_triton(capsys, "batch", clips, "--server", small_triton.address, "--output", output, "--top-k", 3)
    assert done.code == 0, done.output
    assert "3 recognized" in done.out
    recognitions = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [r["video"] for r in recognitions] == ["a.mp4", "b.mp4", "deeper/c.mp4"]
    assert [r["num_frames"] for r in recognitions] == [20, 27, 34]
    assert all(len(r["predictions"]) == 3 for r in recognitions)


def test_path_bytes_and_file_give_the_same_answer(mixed_triton: LocalTriton, clips: Path) -> None:
    path = clips / "a.mp4"
    with Recognizer(mixed_triton.address, model="first") as recognizer:
        from_path = recognizer.recognize(path, top_k=7)
        from_bytes = recognizer.recognize(path.read_bytes(), top_k=7)
        with path.open("rb") as file:
            from_file = recognizer.recognize(file, top_k=7)
    with Recognizer(mixed_triton.address, model="classic") as recognizer:
        normalized_here = recognizer.recognize(path, top_k=7)
    assert from_path.predictions == from_bytes.predictions == from_file.predictions
    for ours, theirs in zip(from_path.predictions, normalized_here.predictions, strict=True):
        assert ours.gloss == theirs.gloss
        assert ours.logit == pytest.approx(theirs.logit, abs=1e-3)


def test_requests_of_equal_length_are_batched(small_triton: LocalTriton) -> None:
    frames = render_golden(16)[None]

    async def send_at_once() -> tuple[int, int]:
        transport = make_transport(small_triton.address)
        before = await transport.statistics("small")
        pending = [transport.infer("small", {"FRAMES__0": frames}, ["LOGITS__0"], BULK_PRIORITY) for _ in range(24)]
        answers = await asyncio.gather(*pending)
        after = await transport.statistics("small")
        await transport.close()
        assert all(np.allclose(a["LOGITS__0"], answers[0]["LOGITS__0"], atol=1e-4) for a in answers)
        return after.requests - before.requests, after.executions - before.executions

    requests, executions = asyncio.run(send_at_once())
    assert requests == 24
    assert executions < requests


def test_requests_of_different_lengths_are_answered_separately(mixed_triton: LocalTriton) -> None:
    async def send_at_once() -> None:
        transport = make_transport(mixed_triton.address)
        lengths = [9, 16, 24, 9, 40, 16]
        frames = [render_golden(length) for length in lengths]
        ours = [transport.infer("first", {"FRAMES__0": f[None]}, ["STEP_LOGITS__1", "FEATURES__2"]) for f in frames]
        tensors = [normalize(f, PRESETS["wlasl"])[None] for f in frames]
        classic = [transport.infer("classic", {"FRAMES__0": t}, ["STEP_LOGITS__1", "FEATURES__2"]) for t in tensors]
        answers = await asyncio.gather(*ours, *classic)
        await transport.close()
        for length, a, b in zip(lengths, answers[:6], answers[6:], strict=True):
            assert a["STEP_LOGITS__1"].shape == (1, max(-(-length // 8) - 1, 1), len(GLOSSES))
            assert np.allclose(a["STEP_LOGITS__1"], b["STEP_LOGITS__1"], atol=1e-3)
            assert a["FEATURES__2"].shape == (1, 64)

    asyncio.run(send_at_once())


def test_vocabulary_and_min_confidence_apply_to_batch(
    small_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("home\nhelp\n")
    output = tmp_path / "out"
    options = ["--vocabulary", words, "--min-confidence", "1", "--format", "jsonl", "--output", output]
    done = asl_triton(capsys, "batch", clips, "--server", small_triton.address, *options)
    assert done.code == 0, done.output
    assert "(unsure)" in done.out
    for line in (output / "results.jsonl").read_text().splitlines():
        recognition = json.loads(line)
        assert recognition["unsure"]
        assert {p["gloss"] for p in recognition["predictions"]} == {"home", "help"}


def test_bad_clips_are_reported_and_others_written(
    small_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    (clips / "text.mp4").write_text("this is no video")
    (clips / "empty.mov").touch()
    output = tmp_path / "out"
    done = asl_triton(capsys, "batch", clips, "--server", small_triton.address, "--output", output)
    assert done.code == 3
    assert "3 recognized; 2 failed" in done.out
    errors = {e["video"]: e["error"] for e in map(json.loads, (output / "errors.jsonl").read_text().splitlines())}
    assert "cannot be read as a video" in errors["text.mp4"]
    assert "is empty" in errors["empty.mov"]
    assert len((output / "results.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("num_frames", [1, 8, 9, 300, 301, 500])
def test_every_length_is_answered(small_triton: LocalTriton, tmp_path: Path, num_frames: int) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=num_frames, size=(64, 64))
    with Recognizer(small_triton.address) as recognizer:
        recognition = recognizer.recognize(clip)
    assert recognition.num_frames == num_frames
    assert recognition.num_windows == (1 if num_frames <= 300 else -(-(num_frames - 64) // 32) + 1)


@pytest.mark.parametrize("size", ["16x16", "7680x4320"])
def test_smallest_and_largest_frames_are_answered(small_triton: LocalTriton, tmp_path: Path, size: str) -> None:
    with Recognizer(small_triton.address) as recognizer:
        assert recognizer.recognize(clip(tmp_path / "clip.avi", 9, size)).num_frames == 9


@pytest.mark.parametrize("name", [
    "two words.mp4", "it's \"quoted\".mp4", "signe 🤟 été.mp4", "-dash.mp4", "100%d.mp4", "[red]x[bold].mp4", "BIG.MP4",
])  # fmt: skip
def test_unusual_file_names_are_kept(small_triton: LocalTriton, tmp_path: Path, capsys: Capture, name: str) -> None:
    folder, output = tmp_path / "clips", tmp_path / "out"
    write_clip(folder / "plain.mp4", num_frames=9, size=(64, 64)).rename(folder / name)
    done = asl_triton(capsys, "batch", folder, "--server", small_triton.address, "--output", output)
    assert done.code == 0, done.output
    assert name in done.out
    assert json.loads((output / "results.jsonl").read_text())["video"] == name


def test_missing_server_is_an_error(clips: Path, tmp_path: Path, capsys: Capture) -> None:
    (port,) = claim_ports("127.0.0.1", {"gRPC": None}).values()
    for command in (["batch", clips, "--output", tmp_path / "out"], ["models"]):
        done = asl_triton(capsys, *command, "--server", f"127.0.0.1:{port}")
        assert done.code == 1
        assert "no server answers at" in done.output and "asl-triton serve" in done.output
    assert not (tmp_path / "out" / "results.csv").exists()


def test_http_port_in_place_of_grpc_port_is_explained(small_triton: LocalTriton, capsys: Capture) -> None:
    done = asl_triton(capsys, "models", "--server", small_triton.http_address)
    assert done.code == 1
    assert "8001" in done.output


def test_unreachable_server_in_a_list_is_reported(
    small_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    servers = f"127.0.0.1:9,{small_triton.address}"
    done = asl_triton(capsys, "batch", clips, "--output", tmp_path / "out", "--server", servers)
    assert done.code == 0, done.output
    assert "127.0.0.1:9 does not answer: continuing with the other servers" in done.output


def test_several_models_require_a_name(mixed_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ["--server", mixed_triton.address, "--output", tmp_path / "out"]
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 1
    assert "choose one with --model (classic, first, second)" in done.output
    done = asl_triton(capsys, "batch", clips, "--model", "second", *options)
    assert done.code == 0, done.output


@pytest.mark.parametrize(("model", "error"), [
    ("stranger", "is not an asl-triton model"),
    ("nobody", "serves no model 'nobody'; its models: classic, first, second"),
])  # fmt: skip
def test_unusable_model_is_an_error(
    mixed_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture, model: str, error: str
) -> None:
    options = ["--server", mixed_triton.address, "--output", tmp_path / "out", "--model", model]
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 1
    assert error in done.output


def test_server_without_an_asl_triton_model_is_an_error(clips: Path, tmp_path: Path, capsys: Capture) -> None:
    write_stranger(tmp_path / "models", "stranger")
    with serve(tmp_path / "models") as triton:
        done = asl_triton(capsys, "batch", clips, "--server", triton.address, "--output", tmp_path / "out")
        assert done.code == 1
        assert "serves no asl-triton model (it serves stranger)" in done.output
        assert asl_triton(capsys, "doctor", "--server", triton.address).code == 1


def test_model_folder_without_its_network_is_an_error(
    small_repository: Path, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(small_repository, tmp_path / "models")
    (tmp_path / "models" / "small" / "1" / "model.pt").unlink()
    options = ["--local", "--repository", tmp_path / "models", "--output", tmp_path / "out"]
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 1
    assert "model.pt" in done.output


def test_folder_without_clips_is_an_error(small_triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    options = ["--server", small_triton.address, "--output", tmp_path / "out"]
    done = asl_triton(capsys, "batch", tmp_path / "empty", *options)
    assert done.code == 1
    assert "there is no video" in done.output
    assert asl_triton(capsys, "batch", tmp_path / "nowhere", *options).code == 1


def test_unwritable_output_is_an_error(small_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    options = ["--server", small_triton.address, "--output", tmp_path / "file" / "out"]
    done = asl_triton(capsys, "batch", clips, *options)
    assert done.code == 1
    assert "cannot write" in done.output


@pytest.mark.parametrize("arguments", [["--format", "xml"], ["--top-k", "0"], ["--min-confidence", "2"], ["--nope"]])
def test_usage_error_exits_with_2(clips: Path, capsys: Capture, arguments: list[str]) -> None:
    assert asl_triton(capsys, "batch", clips, *arguments).code == 2


def test_killed_server_leaves_partial_results(small_repository: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "clips", tmp_path / "out"
    first = write_clip(folder / "000.mp4", num_frames=40, size=(128, 128))
    for number in range(1, 400):
        os.link(first, folder / f"{number:03}.mp4")
    with LocalTriton(small_repository) as triton:
        command = [sys.executable, "-m", "asl_triton", "batch", folder, "--server", triton.address, "--output", output]
        command += ["--wait", "2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            journal = output / "journal.jsonl"
            while running.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 6):
                time.sleep(0.01)
            triton.stop()
            printed = running.communicate(timeout=120)[0]
    assert running.returncode == 3, printed
    assert "stopped before the end: the server went away and was not back after" in " ".join(printed.split())
    results = [json.loads(line)["video"] for line in (output / "results.jsonl").read_text().splitlines()]
    assert 5 <= len(results) < 400
    assert results == sorted(results)


def test_models_lists_the_served_models(mixed_triton: LocalTriton, capsys: Capture) -> None:
    done = asl_triton(capsys, "models", "--server", mixed_triton.address, "--json")
    assert done.code == 0
    models = {
        m["name"]: (m["labels"], m["preset"]["name"], m["precision"], m["datatype"]) for m in json.loads(done.out)
    }
    assert models == {
        "classic": (7, "wlasl", "fp32", "FP32"),
        "first": (7, "wlasl", "fp32", "UINT8"),
        "second": (7, "bsl1k", "bf16", "UINT8"),
    }
    labels = asl_triton(capsys, "models", "--server", mixed_triton.address, "--model", "first", "--labels")
    assert labels.out.splitlines() == list(GLOSSES)


def test_doctor_passes_on_a_good_server(mixed_triton: LocalTriton, mixed_repository: Path, capsys: Capture) -> None:
    done = asl_triton(capsys, "doctor", "--server", mixed_triton.address, "--repository", mixed_repository, "--json")
    report = json.loads(done.out)
    assert done.code == 0 and report["well"], report
    golden = [check for check in report["checks"] if "golden" in check["name"]]
    assert [check["state"] for check in golden] == ["ok"] * 3


def test_doctor_detects_other_weights(
    small_checkpoint: Path, small_triton: LocalTriton, small_repository: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(small_repository, tmp_path / "models")
    golden = tmp_path / "models" / "small" / "golden.npz"
    with np.load(golden) as arrays:
        changed = dict(arrays)
    changed["served_logits"] = changed["served_logits"][::-1]
    np.savez(golden, **changed)
    done = asl_triton(capsys, "doctor", "--server", small_triton.address, "--repository", tmp_path / "models")
    assert done.code == 1
    assert "the served weights are not from this folder" in done.output


@pytest.fixture(scope="module")
def wrong_triton(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve `empty`, which answers as with NumPy 2, and `mislabeled`, with labels for two of seven classes."""
    folder = tmp_path_factory.mktemp("wrong")
    empty = copy_model(small_repository / "small", folder / "empty")
    code = FOREIGN_CODE.replace("SUM__0", "LOGITS__0").replace("torch.zeros(1)", "torch.zeros(1, 0)")
    (empty / "1" / "model.py").write_text(code)
    (copy_model(small_repository / "small", folder / "mislabeled") / "labels.txt").write_text("book\ndrink\n")
    with serve(folder) as triton:
        yield triton


def test_empty_answers_caused_by_numpy_2_are_detected(
    wrong_triton: LocalTriton, clips: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ("--server", wrong_triton.address, "--model", "empty")
    done = asl_triton(capsys, "doctor", *options)
    assert done.code == 1
    assert "numpy<2" in done.output
    done = asl_triton(capsys, "batch", clips, *options, "--output", tmp_path / "out")
    assert done.code == 1


def test_wrong_number_of_labels_is_detected(wrong_triton: LocalTriton, capsys: Capture) -> None:
    done = asl_triton(capsys, "models", "--server", wrong_triton.address, "--model", "mislabeled")
    assert done.code == 1
    assert "have no label" in done.output
