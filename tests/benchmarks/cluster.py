"""The same archive through Ray as through the local engine: the same rows, and what it costs.

    python -m tests.benchmarks.cluster --clips 2000 --workers 2

Short clips of the demo signer under many names (as `archive.py` makes them), the demo model in a real Triton on this
machine, and `asl-triton batch` twice: by itself, then with a Ray of its own and so many workers. Both are seconds from
the command's start to its end; the memory is that of the command and of all processes that it starts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from asl_triton_deploy.local import LocalTriton
from tests.benchmarks.archive import MB, SAMPLE_S, make_archive
from tests.benchmarks.sending import export
from tests.tables import assert_same_rows


def main() -> None:
    """Make the archive, run both engines, compare their rows, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    console = Console(width=110)
    table = Table("engine", "clips", "seconds", "clips a second", "memory at most, MB", "processes", box=None)
    engines = {"local": [], "ray": ["--engine", "ray", "--ray-workers", str(arguments.workers)]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("Rendering clips"):
            make_archive(folder / "clips", arguments.clips)
            export(folder, demo=True, precision="fp32")  # whose answers hardly depend on what shares a batch
        with LocalTriton(folder / "models") as triton:
            words = [sys.executable, "-m", "asl_triton", "batch", str(folder / "clips"), "--server", triton.address]
            words += ["--format", "parquet", "--json"]
            for engine, options in engines.items():
                summary, seconds, most_mb, processes = watch([*words, "--output", str(folder / engine), *options])
                assert summary["recognized"] == arguments.clips, summary
                rate = f"{arguments.clips / seconds:.1f}"
                table.add_row(engine, f"{arguments.clips:,}", f"{seconds:.0f}", rate, f"{most_mb:.0f}", str(processes))
        local, ray = (pq.read_table(folder / engine / "results.parquet") for engine in engines)
        assert_same_rows(ray, local)
    console.print(table)
    console.print(f"{ray.num_rows:,} rows of {len(set(ray['video'].to_pylist())):,} clips each, the same")


def watch(command: list[str]) -> tuple[dict[str, object], float, float, int]:
    """Run the command: its summary, its seconds, the most memory in MB, and the most processes."""
    began_s, most, processes = time.perf_counter(), 0.0, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            family = [process, *process.children(recursive=True)]
            # What they share, such as Python itself and Ray's object store, counts once: a process's part of it.
            most = max(most, sum(map(own_mb, family)))
            processes = max(processes, len(family))
            time.sleep(SAMPLE_S)
        assert running.stdout is not None
        summary = json.loads(running.stdout.read())
    return summary, time.perf_counter() - began_s, most, processes


def own_mb(process: psutil.Process) -> float:
    """The memory of a process, with its part of what it shares (PSS); nothing when it has ended."""
    try:
        return float(process.memory_full_info().pss) / MB
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    main()
