"""`python -m tests.benchmarks.instances`: throughput by clips in flight and by server instances, and the knees.

For each number of instances, the same network is exported, served by its own real Triton, and put under load by
`asl-triton bench`. It is the demo checkpoint or, with `--full`, a full-width I3D with random weights, which do not
affect speed. Stop other programs first, and read the ratios.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asl_triton.bench.report import KNEE_GAIN, format_number
from asl_triton.presets import PRESETS
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import Checkpoint, load_checkpoint, read_labels_for
from asl_triton_export.exporter import export_model, fastest_precision
from tests.networks import build_small_network

MODEL = "model"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.instances", description=__doc__)
    parser.add_argument("--instances", default="1,2,4", help="numbers of instances, separated by commas")
    parser.add_argument("--concurrency", default="1,2,4,8,16", help="numbers of clips in flight")
    parser.add_argument("--seconds", default="5", help="minimum length of a measuring window")
    parser.add_argument("--frames", default="64", help="frames per clip")
    parser.add_argument("--full", action="store_true", help="a full-width I3D instead of the demo checkpoint")
    parser.add_argument(
        "--output", type=Path, default=Path("build") / "instances.json", help="JSON file for the figures"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    options = ["--concurrency", arguments.concurrency, "--seconds", arguments.seconds, "--frames", arguments.frames]
    with tempfile.TemporaryDirectory() as folder:
        reports = {
            count: measure(Path(folder) / str(count), count, arguments.full, options)
            for count in sorted({int(part) for part in arguments.instances.split(",")})
        }
    show(reports, Console(width=110))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(reports, indent=1))
    print(f"written: {arguments.output}")


def measure(folder: Path, instances: int, full: bool, options: list[str]) -> dict[str, Any]:
    """Run `asl-triton bench` against this number of instances. Returns its `bench.json`."""
    print(f"{instances} instances", file=sys.stderr)
    export(folder / "models", instances, full)
    command = [sys.executable, "-m", "asl_triton", "bench", "--local", "--repository", str(folder / "models")]
    done = subprocess.run([*command, "--output", str(folder), "--json", *options], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def export(repository: Path, instances: int, full: bool) -> None:
    """Write a repository with one model, in the fastest precision on this machine."""
    precision = fastest_precision()
    if full:
        net = build_small_network(2000, width=1.0)
        checkpoint = Checkpoint(repository / "random.pt", "0" * 64, net.state_dict(), 2000, 3, 1.0)
        labels, preset = tuple(f"gloss {n}" for n in range(2000)), PRESETS["wlasl"]
    else:
        bundle = open_bundle(Path("demo"))
        assert bundle.labels is not None and bundle.preset is not None
        checkpoint, preset = load_checkpoint(bundle.weights), bundle.preset
        labels = read_labels_for(checkpoint, bundle.labels)
    export_model(checkpoint, labels, preset, repository, MODEL, precision=precision, instances=instances)


def show(reports: dict[int, dict[str, Any]], console: Console) -> None:
    """Print throughput and p95 by clips in flight (rows) and instances (columns), and the knees."""
    first = next(iter(reports.values()))
    console.print(f"clips per second (p95 in ms): {first['asked']}, {first['model']['precision']}", highlight=False)
    table = Table("in flight")
    for count in reports:
        table.add_column(f"{count} instance{'s' * (count > 1)}", justify="right")
    for level in first["levels"]:
        table.add_row(
            str(level["in_flight"]), *(format_cell(report, level["in_flight"]) for report in reports.values())
        )
    table.add_section()
    table.add_row(
        "knee", *(f"{r['knee']['load']:g} in flight" if r["knee"] else "not reached" for r in reports.values())
    )
    console.print(table)
    if not all(level["stable"] for report in reports.values() for level in report["levels"]):
        console.print("* not stable")
    best = {count: max(level["throughput"] for level in report["levels"]) for count, report in reports.items()}
    ratios = ", ".join(f"{count}: {each / best[min(best)]:.2f}" for count, each in best.items())
    console.print(f"highest throughput by instances, relative to the fewest instances: {ratios}")
    enough = min(n for n in best if all(best[m] < best[n] * (1 + KNEE_GAIN) for m in best if m > n))
    if enough < max(best):
        console.print(f"the knee is at {enough}: more instances gain less than {100 * KNEE_GAIN:g} %")
    else:
        console.print(f"no knee up to {enough} instances: throughput still grows")


def format_cell(report: dict[str, Any], in_flight: int) -> str:
    """Format one load of one server, or nothing if it was not measured."""
    for level in report["levels"]:
        if level["in_flight"] == in_flight:
            mark = "" if level["stable"] else " *"
            return f"{format_number(level['throughput'])} ({format_number(1000 * level['latency_s']['p95'])}){mark}"
    return ""


if __name__ == "__main__":
    main()
