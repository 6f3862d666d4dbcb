"""`make bench-gpu`, small and on a CPU, so that it works once a GPU is available."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.benchmarks.gpu import ROWS, Options, count_flops, measure
from tests.benchmarks.gpu_report import Figure, Report, Row, compare_rows, derive_settings
from tests.paths import ROOT

pytestmark = pytest.mark.timeout(1200)  # takes a minute on an idle machine
BUDGET = ("--budget-s", "1100")

# PyTorch, its dependencies and NumPy: all that the machine has.
INSTALLED = (
    *("torch", "torchgen", "functorch", "numpy", "typing_extensions", "filelock", "fsspec"),
    *("jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy"),
)
SMALL = ("--device", "cpu", "--frames", "9", "--batches", "1,2", "--width", "0.03125")
NEEDS_CUDA = {"requests, fp16", "CUDA graph, fp16"}
NOT_INSTALLED = {"decoding, PyNvVideoCodec", "decoding, torchcodec", "TensorRT, fp16"}
COMPILED = {"torch.compile, fp16", "torch.compile, bf16"}
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-3, "fp16": 0.05, "bf16": 0.5}  # logits spread over about 10


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with only PyTorch and NumPy, and no C++ compiler."""
    folder = tmp_path_factory.mktemp("site-packages")
    for name in INSTALLED:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        (folder / source.name).symlink_to(source)
        libraries = source.with_name(f"{name}.libs")
        if libraries.is_dir():
            (folder / libraries.name).symlink_to(libraries)
    return os.environ | {"PYTHONPATH": str(folder), "CXX": "no-such-compiler", "OMP_NUM_THREADS": "1"}


def start_benchmark(environment: dict[str, str], output: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-S", "-m", "tests.benchmarks.gpu", *SMALL, "--output", str(output), *options]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def read_rows(output: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((output / "gpu.json").read_text())["rows"]}


@pytest.fixture(scope="module")
def output(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a complete run."""
    folder = tmp_path_factory.mktemp("gpu")
    process = start_benchmark(environment, folder, *BUDGET)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return folder


def test_every_row_runs_with_pytorch_and_numpy_alone(output: Path) -> None:
    rows = read_rows(output)
    assert list(rows) == list(ROWS)
    failed = {name: row["note"] for name, row in rows.items() if row["status"] == "error"}
    assert failed.keys() <= COMPILED, failed
    assert {name for name, row in rows.items() if row["status"] == "not installed"} == NOT_INSTALLED
    skipped = {name for name, row in rows.items() if row["status"] == "skipped"}
    assert skipped == NEEDS_CUDA | {"reference answers"}


def test_every_forward_is_compared_with_float32(output: Path) -> None:
    forwards = {name: row for name, row in read_rows(output).items() if row["figures"]}
    assert len(forwards) == 11
    for name, row in forwards.items():
        assert [figure["batch"] for figure in row["figures"]] == [1, 2], name
        assert row["max_difference"] <= TOLERANCE[row["precision"]], name
        assert row["compared"] == 2, name
        for figure in row["figures"]:
            assert figure["times_as_trained"] > 0 and figure["of_matrix_rate"] > 0
    assert forwards["exported, fp32"]["same_top1"] == 2
    assert forwards["exported, fp16"]["max_difference"] > forwards["exported, fp32"]["max_difference"]


def test_missing_compiler_is_reported(output: Path) -> None:
    rows = read_rows(output)
    for name in COMPILED:
        assert rows[name]["status"] == "error"
        assert "compiler" in rows[name]["note"]


def test_tables_and_settings_are_written(output: Path) -> None:
    text = (output / "gpu.md").read_text()
    assert "| exported, bf16 |" in text
    settings = {setting["name"]: setting for setting in json.loads((output / "gpu.json").read_text())["settings"]}
    assert len(settings) == 7
    for name, setting in settings.items():
        assert setting["value"] and setting["reason"]
        assert f"| {name} | {setting['value']} |" in text


@pytest.fixture(scope="module")
def running(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[psutil.Process, Path]]:
    """A run that has measured its first row."""
    folder = tmp_path_factory.mktemp("gpu")
    process = start_benchmark(environment, folder, *BUDGET)
    try:
        wait_for_rows(process, folder, 1)
        yield psutil.Process(process.pid), folder
    finally:
        process.terminate()
        process.communicate()


def wait_for_rows(process: subprocess.Popen[str] | psutil.Process, output: Path, count: int) -> dict[str, Any]:
    for _ in range(3000):
        if (output / "gpu.json").exists() and len(rows := read_rows(output)) >= count:
            return rows
        assert process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running()
        time.sleep(0.1)
    raise AssertionError(f"{count} rows were not measured")


def find_workers(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]


def test_crash_costs_one_row(running: tuple[psutil.Process, Path]) -> None:
    process, output = running
    (worker,) = find_workers(process)
    worker.kill()
    crashed, after = list(wait_for_rows(process, output, 3).values())[1:3]
    while "exit code -9" not in crashed["note"]:  # the worker sent another row before it was killed
        crashed, after = after, list(wait_for_rows(process, output, 4).values())[3]
    assert crashed["status"] == "error"
    assert after["status"] == "ok"


def test_terminated_run_ends_its_worker(running: tuple[psutil.Process, Path]) -> None:
    process, output = running  # must be the last test of this run
    workers = find_workers(process)
    process.terminate()
    _, alive = psutil.wait_procs([process, *workers], timeout=60)
    assert not alive
    assert read_rows(output)["matrix rate"]["status"] == "ok"


def test_rows_beyond_the_budget_are_skipped(tmp_path: Path) -> None:
    measure(Options("cpu", 9, (1,), 1 / 16), Report(tmp_path), budget_s=0.0)
    rows = read_rows(tmp_path)
    assert list(rows) == list(ROWS)
    assert {row["status"] for row in rows.values()} == {"skipped"}


def test_clip_of_64_frames_takes_222_gflop() -> None:
    assert count_flops(64) == pytest.approx(222e9, rel=0.005)


# Derived settings

RATES = Row("ok", "matrix rate", values={"fp32": 50.0, "tf32": 400.0, "fp16": 800.0, "bf16": 800.0})


def make_row(name: str, precision: str, rates: dict[int, float], difference: float = 0.01, same: int = 8) -> Row:
    """Make a row from clips per second by batch size."""
    figures = tuple(
        Figure(batch, 3 * batch / rate, batch / rate, batch / rate, rate, tflops=0.222 * rate)
        for batch, rate in rates.items()
    )
    return Row("ok", name, "", 1.0, precision, figures, difference, same, 8)


TRAINED = make_row("as trained, eager, fp32", "fp32", {1: 100.0, 8: 150.0}, 0.0)
FP16 = make_row("exported, fp16", "fp16", {1: 800.0, 4: 1500.0, 8: 1600.0, 16: 1620.0})
BF16 = make_row("exported, bf16", "bf16", {1: 810.0, 4: 1500.0, 8: 1650.0, 16: 1660.0}, 0.1)
TF32 = make_row("exported, tf32", "tf32", {1: 400.0, 8: 700.0}, 0.002)


def derive_values(*rows: Row) -> dict[str, str]:
    return {setting.name: setting.value for setting in derive_settings(compare_rows([RATES, TRAINED, *rows]))}


@pytest.mark.parametrize(
    ("rows", "precision"),
    [
        ((FP16, BF16, TF32), "fp16"),  # as fast as bf16, and closer
        ((replace(FP16, same_top1=7), BF16, TF32), "bf16"),
        ((replace(FP16, max_difference=None), replace(BF16, same_top1=6), TF32), "fp32"),
        ((replace(FP16, status="error", figures=()), TF32), "fp32"),
    ],
)
def test_fastest_precision_that_answers_the_same_is_chosen(rows: tuple[Row, ...], precision: str) -> None:
    assert derive_values(*rows)["asl_triton.precision (export --precision)"] == precision


def test_smallest_batch_close_to_the_best_rate_is_chosen() -> None:
    settings = derive_values(FP16)
    assert settings["max_batch_size, preferred_batch_size"] == "8"
    assert settings["model_warmup, batch sizes"] == "1, 4, 8"  # each first forward took three times as long


@pytest.mark.parametrize(
    ("rates", "count"), [((1000, 1040, 1045), "1"), ((1000, 1300, 1310), "2"), ((10, 20, 40), "4")]
)
def test_instances_are_added_while_they_help(rates: tuple[float, ...], count: str) -> None:
    values = {f"batch 8, {number} at once": rate for number, rate in zip((1, 2, 4), rates, strict=True)}
    assert derive_values(FP16, Row("ok", "instances, fp16", values=values))["instance_group count"] == count


def test_slow_new_lengths_are_warmed_up() -> None:
    values = {f"optimized execution {state}: {when}": 3.0 for state in ("on", "off") for when in ("first", "second")}
    values |= {"optimized execution off: later": 2.9, "optimized execution on: later": 2.9}
    new_lengths = Row("ok", "new lengths, fp16", values=values)
    assert derive_values(new_lengths)["model_warmup, lengths"] == "one length"
    assert derive_values(new_lengths)["DISABLE_OPTIMIZED_EXECUTION"] == "true"
    slow = replace(new_lengths, values=values | {"optimized execution off: first": 90.0})
    assert derive_values(slow)["model_warmup, lengths"] == "every length that is common"


def test_figures_are_ratios_to_the_trained_network_and_the_matrix_rate() -> None:
    row = compare_rows([RATES, TRAINED, FP16])[2]
    assert row.figures[0].times_as_trained == pytest.approx(8.0)
    assert row.figures[0].of_matrix_rate == pytest.approx(0.222 * 800 / 800)
    assert row.figures[1].times_as_trained is None  # batch 4 was not measured as trained
