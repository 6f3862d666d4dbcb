"""`python -m tests.benchmarks.instances`: throughput against clips in flight and server instances, the knees named.

For each number of instances the same network is exported, served by a real Triton of its own, and put under load by
`asl-triton bench`. The demo checkpoint unless `--full`: I3D in full width with random weights, whose speed is that of
any others. Quiet the machine first; read the ratios.
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
from tests.networks import small_network

MODEL = "model"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.instances", description=__doc__)
    parser.add_argument("--instances", default="1,2,4", help="how many instances, with commas between")
    parser.add_argument("--concurrency", default="1,2,4,8,16", help="how many clips in flight")
    parser.add_argument("--seconds", default="5", help="how long a window lasts, at the least")
    parser.add_argument("--frames", default="64", help="how many frames a clip")
    parser.add_argument("--full", action="store_true", help="I3D in full width instead of the demo checkpoint")
    parser.add_argument("--output", type=Path, default=Path("build") / "instances.json", help="the same as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    options = ["--concurrency", arguments.concurrency, "--seconds", arguments.seconds, "--frames", arguments.frames]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            count: measured(Path(folder) / str(count), count, arguments.full, options)
            for count in sorted({int(part) for part in arguments.instances.split(",")})
        }
    show(found, Console(width=110))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1))
    print(f"written: {arguments.output}")


def measured(folder: Path, instances: int, full: bool, options: list[str]) -> dict[str, Any]:
    """What `asl-triton bench` says of so many instances: `bench.json`."""
    print(f"{instances} instances", file=sys.stderr)
    export(folder / "models", instances, full)
    command = [sys.executable, "-m", "asl_triton", "bench", "--local", "--repository", str(folder / "models")]
    done = subprocess.run([*command, "--output", str(folder), "--json", *options], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def export(repository: Path, instances: int, full: bool) -> None:
    """Write a repository with one model, in the precision that is fastest here."""
    precision = fastest_precision()
    if full:
        net = small_network(2000, width=1.0)
        checkpoint = Checkpoint(repository / "random.pt", "0" * 64, net.state_dict(), 2000, 3, 1.0)
        labels, preset = tuple(f"gloss {n}" for n in range(2000)), PRESETS["wlasl"]
    else:
        bundle = open_bundle(Path("demo"))
        assert bundle.labels is not None and bundle.preset is not None
        checkpoint, preset = load_checkpoint(bundle.weights), bundle.preset
        labels = read_labels_for(checkpoint, bundle.labels)
    export_model(checkpoint, labels, preset, repository, MODEL, precision=precision, instances=instances)


def show(found: dict[int, dict[str, Any]], console: Console) -> None:
    """Throughput and p95 by clips in flight (rows) and instances (columns), and the knees."""
    first = next(iter(found.values()))
    console.print(f"clips a second (p95 in ms): {first['asked']}, {first['model']['precision']}", highlight=False)
    table = Table("in flight")
    for count in found:
        table.add_column(f"{count} instance{'s' * (count > 1)}", justify="right")
    for level in first["levels"]:
        table.add_row(str(level["in_flight"]), *(cell(report, level["in_flight"]) for report in found.values()))
    table.add_section()
    table.add_row("knee", *(f"{r['knee']['load']:g} in flight" if r["knee"] else "not reached" for r in found.values()))
    console.print(table)
    if not all(level["stable"] for report in found.values() for level in report["levels"]):
        console.print("* not stable")
    best = {count: max(level["throughput"] for level in report["levels"]) for count, report in found.items()}
    ratios = ", ".join(f"{count}: {each / best[min(best)]:.2f}" for count, each in best.items())
    console.print(f"most clips a second, by instances, beside the fewest: {ratios}")
    enough = min(n for n in best if all(best[m] < best[n] * (1 + KNEE_GAIN) for m in best if m > n))
    if enough < max(best):
        console.print(f"the knee is at {enough}: more instances gain less than {100 * KNEE_GAIN:g} %")
    else:
        console.print(f"no knee up to {enough} instances: throughput still grows")


def cell(report: dict[str, Any], in_flight: int) -> str:
    """One load of one server, where it was measured."""
    for level in report["levels"]:
        if level["in_flight"] == in_flight:
            mark = "" if level["stable"] else " *"
            return f"{format_number(level['throughput'])} ({format_number(1000 * level['latency_s']['p95'])}){mark}"
    return ""


if __name__ == "__main__":
    main()
