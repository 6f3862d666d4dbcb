"""Where a clip's CPU time goes, stage by stage, in `asl-triton batch` and in `recognize_sign` inside Triton.

    python -m tests.benchmarks.profile --videos ../shared/wlasl/videos

The demo model runs in a real Triton on this machine. py-spy samples the Python stacks of the client, or of the process
of `recognize_sign`, and of the decoders below it. Each sample counts for the stage of its innermost known function, and
the shares are scaled to the CPU time that the kernel counted. gRPC's own threads have no Python stack, so all of their
CPU time counts as sending. Writes the tables as Markdown and JSON, and a flame graph for each way.
"""

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import psutil

from asl_triton.batch.journal import JOURNAL
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.transport.factory import make_transport
from asl_triton.video.discovery import find_clips
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.exporter import fastest_precision
from tests.benchmarks.__main__ import write_clip
from tests.benchmarks.sending import export

PY_SPY = Path(sys.executable).with_name("py-spy")
SAMPLES_PER_S = 100
ATTACH_S = 1.0  # py-spy reads the symbols of a process before it takes the first sample
POLL_S = 0.02
AT_ONCE = 4  # clips sent to recognize_sign at once

# Stages, and patterns for their functions in py-spy's format: `name (file:line)`. The first match counts.
STAGES = (
    ("start", r"<frozen importlib|dataclasses\.py"),
    ("demux", r"_read_packet|open_(stream|file|video)|video/containers\.py"),
    ("decode", r"video/(decoder|reader|timestamps)\.py"),
    ("color conversion", r"video/colors\.py"),
    ("resize", r"resize_(image|frame)"),
    ("crop", r"video/preprocessing\.py"),
    ("find the signer", r"asl_triton/signer/|video/shots\.py"),
    ("copy", r"video/windows\.py|transport/shm_region\.py|_read_windows|_decode_windows|map_memory|view_crops"),
    ("serialize", r"build_(inputs|message)|tritonclient/|grpc/_common\.py|triton_python_backend_utils\.py"),
    ("send", r"grpc/|transport/|(infer|ask|send) \(asl_triton/triton_backend"),
    ("rank", r"asl_triton/postprocessing/|build_recognition|build_ranked_tensors|format_details"),
    ("write", r"batch/journal\.py|asl_triton/(writers|files)|cli/progress\.py|rich/"),
    ("hand to a decoder", r"multiprocessing/|asl_triton/decoding/(pool|worker)\.py"),
    ("wait", r"selectors\.py|concurrent/|asyncio/|threading\.py|subprocess\.py"),
)
ORDER = [*(stage for stage, _ in STAGES), "other"]


@dataclass(frozen=True)
class CpuTime:
    """CPU seconds of a process so far: of its Python threads, its other threads, and the processes below it."""

    python_s: float = 0.0
    native_s: float = 0.0
    below_s: float = 0.0

    def since(self, before: "CpuTime") -> "CpuTime":
        """The time spent since then."""
        return CpuTime(self.python_s - before.python_s, self.native_s - before.native_s, self.below_s - before.below_s)

    def max_with(self, now: "CpuTime") -> "CpuTime":
        """The larger times of both. `now` may lack the time of a process that has just ended."""
        return CpuTime(*map(max, astuple(self), astuple(now)))


@dataclass(frozen=True)
class Profile:
    """One way to recognize clips: CPU milliseconds per clip in each stage, and in processes that were not sampled."""

    way: str
    clips: int
    samples: int
    stages_ms: dict[str, float]
    elsewhere_ms: dict[str, float]


def main() -> None:
    """Serve, profile both ways, and write the tables and flame graphs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200, help="number of clips for each way")
    parser.add_argument("--videos", type=Path, help="folder of clips; by default, clips of 64 frames are rendered")
    parser.add_argument(
        "--output", type=Path, default=Path("build") / "profile", help="folder for tables and flame graphs"
    )
    parser.add_argument("options", nargs="*", help="options of `asl-triton batch`, after --")
    arguments = parser.parse_args()
    if not PY_SPY.exists():
        sys.exit("py-spy is missing: pip install -e '.[dev]'")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.videos:
            videos = [clip.path.absolute() for clip in find_clips(arguments.videos)]
        else:
            videos = [write_clip(folder / "originals" / f"{n:02}.mp4", n) for n in range(8)]
        (folder / "clips").mkdir()
        for number in range(arguments.clips):
            video = videos[number % len(videos)]
            (folder / "clips" / f"{number:05}{video.suffix}").symlink_to(video)
        export(folder, demo=True, precision=fastest_precision())
        with LocalTriton(folder / "models", recognize_sign=True, shared_memory=True) as triton:
            profiles = [
                profile_batch(triton, folder, arguments.output, arguments.options),
                profile_recognize_sign(triton, folder, arguments.output),
            ]
    text = "\n".join(map(format_table, profiles))
    (arguments.output / "profile.md").write_text(text)
    (arguments.output / "profile.json").write_text(json.dumps([asdict(profile) for profile in profiles], indent=1))
    print(text)
    print(f"written: {arguments.output}")


def profile_batch(triton: LocalTriton, folder: Path, output: Path, options: Sequence[str]) -> Profile:
    """Profile the command from its first answered clip on, without its startup."""
    results = folder / "results"
    command = [sys.executable, "-m", "asl_triton", "batch", str(folder / "clips"), "--model", "i3d"]
    command += ["--server", triton.address, "--output", str(results), "--json", *options]
    servers_before = read_servers(triton)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None and count_lines(results / JOURNAL) < 2:  # the first line is not a clip
            time.sleep(POLL_S)
        known, before = count_lines(results / JOURNAL) - 1, read_cpu_time(process)
        after = before
        with record(running.pid, output / "batch.svg") as stacks:
            while running.poll() is None:
                with suppress(psutil.Error):  # the command has just ended
                    after = after.max_with(read_cpu_time(process))
                time.sleep(POLL_S)
        assert running.stdout is not None
        recognized = json.load(running.stdout)["recognized"]
    elsewhere = {name: 1000 * (s - servers_before[name]) / recognized for name, s in read_servers(triton).items()}
    return build_profile("batch", recognized - known, stacks, after.since(before), elsewhere)


def profile_recognize_sign(triton: LocalTriton, folder: Path, output: Path) -> Profile:
    """Profile the process of `recognize_sign` and its decoders while it receives clips as video files."""
    stubs = [p for p in psutil.Process(triton.pid).children() if "/recognize_sign/" in " ".join(p.cmdline())]
    (stub,) = stubs
    videos = sorted((folder / "clips").iterdir())
    asyncio.run(send_videos(triton.address, videos[:AT_ONCE]))
    before, servers_before = read_cpu_time(stub), read_servers(triton)
    with record(stub.pid, output / "recognize_sign.svg") as stacks:
        asyncio.run(send_videos(triton.address, videos))
        spent = read_cpu_time(stub).since(before)
    elsewhere = {name: 1000 * (s - servers_before[name]) / len(videos) for name, s in read_servers(triton).items()}
    return build_profile("recognize_sign", len(videos), stacks, spent, elsewhere)


async def send_videos(address: str, videos: Sequence[Path]) -> None:
    """Send video files to `recognize_sign`."""
    remaining = iter(videos)

    async def work(recognizer: AsyncRecognizer) -> None:
        for video in remaining:
            await recognizer.recognize(video)

    transport = make_transport(address)
    async with AsyncRecognizer(transport=transport, model="i3d", send="video") as recognizer:
        await asyncio.gather(*(work(recognizer) for _ in range(AT_ONCE)))


@contextmanager
def record(pid: int, flame_graph: Path) -> Iterator[Counter[str]]:
    """Sample a process and its children until the block or the process ends. Yields stacks with their counts."""
    stacks: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name) / "stacks"
        options = ["--pid", str(pid), "--subprocesses", "--nonblocking", "--rate", str(SAMPLES_PER_S), "--duration"]
        command = [str(PY_SPY), "record", *options, "unlimited"]
        recorders = [
            subprocess.Popen(
                [*command, "--format", kind, "--output", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for kind, path in (("raw", raw), ("flamegraph", flame_graph))
        ]
        time.sleep(ATTACH_S)
        try:
            yield stacks
        finally:
            for recorder in recorders:
                recorder.send_signal(signal.SIGINT)  # makes py-spy write its file
            messages = [recorder.communicate()[0].decode() for recorder in recorders]
        if not raw.exists():
            sys.exit(f"py-spy cannot read process {pid}: {messages[0].strip()}")
        for line in raw.read_text().splitlines():
            stack, count = line.rsplit(" ", 1)
            stacks[stack] += int(count)


def read_cpu_time(process: psutil.Process) -> CpuTime:
    """Read the CPU time that a process has spent so far."""
    own = process.cpu_times()
    names = {int(task.name): (task / "comm").read_text() for task in Path(f"/proc/{process.pid}/task").iterdir()}
    native_s = sum(
        thread.user_time + thread.system_time
        for thread in process.threads()
        if names.get(thread.id, names[process.pid]) != names[process.pid]  # Python's threads have the program's name
    )
    below_s = own.children_user + own.children_system
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            times = child.cpu_times()
            below_s += times.user + times.system + times.children_user + times.children_system
    return CpuTime(own.user + own.system - native_s, native_s, below_s)


def read_servers(triton: LocalTriton) -> dict[str, float]:
    """CPU seconds so far of Triton and of the process with the network."""
    server = psutil.Process(triton.pid)
    (network,) = [stub for stub in server.children() if "/i3d/" in " ".join(stub.cmdline())]
    times = {"Triton": server.cpu_times(), "the network's process": network.cpu_times()}
    return {name: each.user + each.system for name, each in times.items()}


def build_profile(
    way: str, clips: int, stacks: Counter[str], spent: CpuTime, elsewhere_ms: dict[str, float]
) -> Profile:
    """Scale the samples of the process and of its children to the CPU time that the kernel counted for them."""
    stages_ms: Counter[str] = Counter()
    for is_below, seconds in ((False, spent.python_s), (True, spent.below_s)):
        counts: Counter[str] = Counter()
        for stack, count in stacks.items():
            if (stack.count(";process ") > 0) == is_below:
                counts[find_stage(stack)] += count
        for stage, count in counts.items():
            stages_ms[stage] += 1000 * seconds * count / counts.total() / clips
    stages_ms["send"] += 1000 * spent.native_s / clips
    ordered = {stage: stages_ms[stage] for stage in ORDER if stage in stages_ms}
    return Profile(way, clips, stacks.total(), ordered, elsewhere_ms)


def find_stage(stack: str) -> str:
    """Find the stage of a stack (outermost function first): that of the innermost function that has one."""
    for function in reversed(stack.split(";")):
        for stage, pattern in STAGES:
            if re.search(pattern, function):
                return stage
    return "other"


def format_table(profile: Profile) -> str:
    """Format a profile as Markdown."""
    total_ms = sum(profile.stages_ms.values())
    lines = [
        f"## {profile.way}: {profile.clips} clips, {profile.samples:,} samples\n",
        "| stage | CPU ms per clip | share |",
        "|---|---:|---:|",
        *(f"| {stage} | {ms:.2f} | {ms / total_ms:.0%} |" for stage, ms in profile.stages_ms.items()),
        f"| total | {total_ms:.2f} | 100% |",
        *(f"| not sampled: {name} | {ms:.2f} | |" for name, ms in profile.elsewhere_ms.items()),
    ]
    return "\n".join(lines) + "\n"


def count_lines(path: Path) -> int:
    """Count the lines of a file. 0 if it does not exist."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    main()
