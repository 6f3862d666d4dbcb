"""The same archive through the local engine and through Ray: are the rows the same, and what does Ray cost?

    python -m tests.benchmarks.cluster --clips 2000 --workers 2

The clips are short ones of the demo signer under many names, as in `archive.py`. The demo model runs in a real Triton
on this machine. `asl-triton batch` runs twice: by itself, then with its own Ray and `--workers` workers. Times are from
the start of the command to its end, and memory is that of the command and of all processes that it starts.
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
    """Make the archive, run both engines, compare their rows, and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    console = Console(width=110)
    table = Table("engine", "clips", "seconds", "clips/s", "peak memory, MB", "processes", box=None)
    engines = {"local": [], "ray": ["--engine", "ray", "--ray-workers", str(arguments.workers)]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("Rendering clips"):
            make_archive(folder / "clips", arguments.clips)
            export(folder, demo=True, precision="fp32")  # its answers hardly depend on the batch size
        with LocalTriton(folder / "models") as triton:
            command = [sys.executable, "-m", "asl_triton", "batch", str(folder / "clips"), "--server", triton.address]
            command += ["--format", "parquet", "--json"]
            for engine, options in engines.items():
                summary, seconds, peak_mb, processes = watch([*command, "--output", str(folder / engine), *options])
                assert summary["recognized"] == arguments.clips, summary
                rate = f"{arguments.clips / seconds:.1f}"
                table.add_row(engine, f"{arguments.clips:,}", f"{seconds:.0f}", rate, f"{peak_mb:.0f}", str(processes))
        local, ray = (pq.read_table(folder / engine / "results.parquet") for engine in engines)
        assert_same_rows(ray, local)
    console.print(table)
    console.print(f"{ray.num_rows:,} rows of {len(set(ray['video'].to_pylist())):,} clips from each engine: the same")


def watch(command: list[str]) -> tuple[dict[str, object], float, float, int]:
    """Run the command. Returns its summary, seconds, peak memory in MB, and the largest number of processes."""
    began_s, peak_mb, processes = time.perf_counter(), 0.0, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            family = [process, *process.children(recursive=True)]
            # PSS counts shared memory, such as Python itself and Ray's object store, only once.
            peak_mb = max(peak_mb, sum(map(read_pss_mb, family)))
            processes = max(processes, len(family))
            time.sleep(SAMPLE_S)
        assert running.stdout is not None
        summary = json.loads(running.stdout.read())
    return summary, time.perf_counter() - began_s, peak_mb, processes


def read_pss_mb(process: psutil.Process) -> float:
    """The proportional set size (PSS) of a process, 0 if it has ended."""
    try:
        return float(process.memory_full_info().pss) / MB
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    main()
