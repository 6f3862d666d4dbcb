"""The examples in other languages, run as a user would: same glosses and error messages as our client."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from tritonclient.grpc import service_pb2

from asl_triton import Recognition, Recognizer
from asl_triton_demo.signer import render_demo
from asl_triton_deploy.local import LocalTriton
from tests.deploy.programs import program

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NODE_FILES = ("package.json", "package-lock.json", "inference.proto", "recognize_sign.js")
PROTOBUF_TYPES = {  # from the type names of protobuf.js
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
}

Example = Callable[[LocalTriton, Path], subprocess.CompletedProcess[str]]
Ranked = list[tuple[int, str, float]]


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and capture its output."""
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def node_folder(pytestconfig: pytest.Config) -> Path:
    """Return the Node.js example with its packages installed, kept in pytest's cache."""
    npm = program("npm", "apt-get install nodejs npm")
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("example-node")
    installed, lock = folder / "installed-lock.json", (EXAMPLES / "node" / "package-lock.json").read_bytes()
    for name in NODE_FILES:
        shutil.copy(EXAMPLES / "node" / name, folder)
    if not installed.is_file() or installed.read_bytes() != lock:
        done = run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
        assert done.returncode == 0, done.stderr
        installed.write_bytes(lock)
    return folder


@pytest.fixture(params=["python", "node", "java", "curl"])
def example(request: pytest.FixtureRequest) -> Example:
    """Return a function that runs one example on a server and a video."""
    if request.param == "python":
        return lambda triton, video: run(
            sys.executable, EXAMPLES / "python" / "recognize_sign.py", triton.address, video
        )
    if request.param == "node":
        node = program("node", "apt-get install nodejs npm")
        script = request.getfixturevalue("node_folder") / "recognize_sign.js"
        return lambda triton, video: run(node, script, triton.address, video)
    if request.param == "java":
        java = program("java", "apt-get install default-jdk-headless")
        return lambda triton, video: run(java, EXAMPLES / "java" / "RecognizeSign.java", triton.http_address, video)
    program("curl", "apt-get install curl")
    return lambda triton, video: run("sh", EXAMPLES / "curl" / "recognize_sign.sh", triton.http_address, video)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered sign, in a file with a space in its name."""
    (path,) = render_demo(tmp_path_factory.mktemp("rendered"), ("mother",), (3_000_003,))
    return path.rename(path.with_name("a clip.mp4"))


@pytest.fixture(scope="module")
def ours(demo_triton: LocalTriton, clip: Path) -> Recognition:
    with Recognizer(demo_triton.address) as recognizer:
        return recognizer.recognize(clip)


def parse_output(done: subprocess.CompletedProcess[str]) -> Ranked:
    """Parse the lines `rank gloss confidence`."""
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    return [(int(rank), " ".join(gloss), float(confidence)) for rank, *gloss, confidence in lines]


def test_example_prints_the_same_answer_as_our_client(
    demo_triton: LocalTriton, clip: Path, ours: Recognition, example: Example
) -> None:
    ranked = parse_output(example(demo_triton, clip))
    assert len(ranked) == 10
    assert [(rank, gloss) for rank, gloss, _ in ranked] == [(p.rank, p.gloss) for p in ours.predictions]
    assert [confidence for *_, confidence in ranked] == pytest.approx(
        [p.confidence for p in ours.predictions], abs=1e-4
    )


def test_example_prints_tritons_error(demo_triton: LocalTriton, tmp_path: Path, example: Example) -> None:
    (tmp_path / "letter.mp4").write_text("Dear Sir or Madam")
    done = example(demo_triton, tmp_path / "letter.mp4")
    assert (done.returncode, done.stdout) == (1, "")
    error = "VIDEO cannot be read as a video: it is something else, or its beginning is damaged. Supported containers: "
    assert done.stderr.startswith(f"{error}mp4, mov, avi, mkv, webm")


def test_example_reports_a_missing_file(demo_triton: LocalTriton, tmp_path: Path, example: Example) -> None:
    done = example(demo_triton, tmp_path / "nowhere.mp4")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere.mp4" in done.stderr and len(done.stderr.splitlines()) == 1


def test_example_reports_a_missing_server_in_one_line(clip: Path, example: Example) -> None:
    no_server = SimpleNamespace(address="127.0.0.1:9", http_address="127.0.0.1:9")
    done = example(cast(LocalTriton, no_server), clip)
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.strip()
    assert error and "\n" not in error and not error.endswith(":") and "Traceback" not in error


@pytest.fixture(scope="module")
def batched(
    reference_triton: LocalTriton, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Sequence[str]]:
    """Return the glosses that `asl-triton batch` writes for the two real clips."""
    output = tmp_path_factory.mktemp("batch")
    clips = shared_folder / "wlasl" / "videos"
    done = run(
        sys.executable, "-m", "asl_triton", "batch", clips, "--server", reference_triton.address, "--output", output
    )
    assert done.returncode == 0, done.stderr
    glosses: dict[str, list[str]] = {}
    for row in csv.DictReader((output / "results.csv").read_text().splitlines()):
        glosses.setdefault(row["video"], []).append(row["gloss"])
    return glosses


def test_example_prints_the_same_glosses_as_batch_for_real_clips(
    reference_triton: LocalTriton,
    shared_folder: Path,
    expected: Mapping[str, np.ndarray],
    batched: Mapping[str, Sequence[str]],
    example: Example,
) -> None:
    wlasl = shared_folder / "wlasl"
    labels = [line.split("\t")[1] for line in (wlasl / "wlasl_class_list.txt").read_text().splitlines()]
    assert sorted(batched) == ["07068.mp4", "07069.mp4"]
    for clip, glosses in batched.items():
        logits = expected[f"{Path(clip).stem}/wlasl"].max(axis=0)
        ranked = parse_output(example(reference_triton, wlasl / "videos" / clip))
        assert [gloss for _, gloss, _ in ranked] == glosses == [labels[c] for c in np.argsort(-logits)[:10]]


def test_examples_do_not_use_our_code() -> None:
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and "node_modules" not in path.parts]
    assert {path.parent.name for path in files} == {"python", "node", "java", "curl"}
    assert [path.name for path in files if "asl_triton" in path.read_text(encoding="utf-8")] == []


def test_proto_of_the_node_example_is_a_subset_of_tritons(node_folder: Path) -> None:
    code = (
        "const { Root } = require('protobufjs');"
        "const root = new Root().loadSync('inference.proto', { keepCase: true });"
        "console.log(JSON.stringify(root.toJSON()));"
    )
    done = run(program("node", "apt-get install nodejs npm"), "-e", code, cwd=node_folder)
    assert done.returncode == 0, done.stderr
    ours = json.loads(done.stdout)["nested"]["inference"]["nested"]
    theirs = FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    assert theirs.package == "inference"
    assert set(ours.pop("GRPCInferenceService")["methods"]) <= {method.name for method in theirs.service[0].method}
    check_messages(ours, {message.name: message for message in theirs.message_type})


def check_messages(
    ours: Mapping[str, dict[str, dict[str, dict[str, object]]]], theirs: Mapping[str, DescriptorProto]
) -> None:
    """Check that each message has only fields of the public one, with the same numbers and types."""
    for name, message in ours.items():
        fields = {field.name: field for field in theirs[name].field}
        for field_name, field in message["fields"].items():
            public = fields[field_name]
            is_repeated = "keyType" in field or field.get("rule") == "repeated"
            assert field["id"] == public.number, field_name
            assert is_repeated == (public.label == FieldDescriptorProto.LABEL_REPEATED), field_name
            kind = FieldDescriptorProto.TYPE_MESSAGE if "keyType" in field else PROTOBUF_TYPES.get(str(field["type"]))
            assert public.type == (kind or FieldDescriptorProto.TYPE_MESSAGE), field_name
        check_messages(message.get("nested", {}), {nested.name: nested for nested in theirs[name].nested_type})  # type: ignore[arg-type]


def test_shell_example_passes_shellcheck() -> None:
    done = run(program("shellcheck", "apt-get install shellcheck"), EXAMPLES / "curl" / "recognize_sign.sh")
    assert done.returncode == 0, done.stdout
