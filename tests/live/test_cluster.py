"""A batch on a Ray cluster: a real Ray, a real Triton, and a real S3 server."""

import faulthandler
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from asl_triton.batch.journal import JOURNAL, Journal
from asl_triton.batch.ray.cluster import Cluster
from asl_triton.batch.ray.runner import RayBatch
from asl_triton.batch.ray.storage import Folder, find_stored_clips
from asl_triton.batch.runner import BatchOptions, RecognitionBatch, Summary
from asl_triton.errors import AslTritonError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure
from asl_triton.video.discovery import find_clips
from asl_triton_deploy.local import LocalTriton
from tests.client.observing import RecordingObserver
from tests.command_line import asl_triton
from tests.live.conftest import write_clip
from tests.local_triton import serve
from tests.tables import assert_same_rows

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")  # raised by Ray itself

NUM_CLIPS = 40
RANKING = Ranking(top_k=3)
BUCKET = "s3://archive"
EARLIER = Path(__file__).parent / "earlier_version"
ACTOR = "ray::ClipActor"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write forty short clips in nested folders, and two files that are not videos."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(NUM_CLIPS):
        deep = "/".join(f"{number % base}" for base in (2, 3, 5)[: number % 4])
        write_clip(folder / deep / f"{number:02}.mp4", num_frames=9 + number % 6, size=(48, 64), seed=number)
    (folder / "0" / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def few(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy eight of the clips, and one file that is not a video."""
    folder = tmp_path_factory.mktemp("few")
    for path in [*sorted(archive.rglob("[0-9]*.mp4"))[:8], archive / "empty.mp4"]:
        shutil.copy2(path, folder)
    return folder


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """Serve a bucket for this process and its children."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def ray(s3: None) -> Iterator[None]:
    """Join a Ray cluster of two CPUs, for all tests of this process."""
    with Cluster().join():
        yield
    # Ray resets the SIGSEGV handler: install pytest's fault handler again.
    faulthandler.disable()
    faulthandler.enable(sys.__stderr__)


@pytest.fixture(scope="module")
def expected(archive: Path, small_triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of the local engine."""
    output = tmp_path_factory.mktemp("expected")
    RecognitionBatch(find_clips(archive), output, ["parquet", "csv"], RANKING).run(build_factory(small_triton.address))
    return output


def build_factory(address: str) -> Callable[[], AsyncRecognizer]:
    return lambda: AsyncRecognizer(address, in_flight=4, decoders=1)


def run_on_ray(
    address: str,
    source: Path | str,
    output: Path | str,
    observer: RecordingObserver | None = None,
    *,
    workers: int = 1,
    ranking: Ranking = RANKING,
    **options: Any,
) -> Summary:
    """Run a batch on the Ray cluster of this process."""
    folder = Folder.parse(str(source))
    run = RayBatch(
        find_stored_clips(folder),
        folder,
        Folder.parse(str(output)),
        ["parquet"],
        ranking,
        BatchOptions(**options),
        observer,
        Cluster(workers=workers),
    )
    return run.run(build_factory(address))


def read_journal(output: Path) -> list[str]:
    """Return the clips in the journal, including duplicates."""
    path = output / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []
    return sorted(json.loads(line)["video"] for line in lines if line.endswith(b"\n"))


def wait_until(is_true: Callable[[], Any], within_s: float = 60) -> None:
    end_s = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


# The command, with its own Ray cluster


def test_killed_run_resumes_and_writes_the_same_rows_as_the_local_engine(
    small_triton: LocalTriton, archive: Path, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    words = [archive, "--output", output, "--server", small_triton.address, "--top-k", "3", "--engine", "ray"]
    command = [sys.executable, "-m", "asl_triton", "batch", *map(str, words), "--format", "parquet,csv", "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait_until(lambda: len(read_journal(output)) >= 3)
        started = psutil.Process(first.pid).children(recursive=True)
        command_lines = " ".join(word for process in started for word in read_command_line(process))
        first.kill()
    known = len(read_journal(output))
    assert 3 <= known < NUM_CLIPS + 2
    assert not list(output.glob("results.*"))
    _, alive = psutil.wait_procs(started, timeout=5)
    assert all("Agent" in process.name() for process in alive)  # agents look for Ray for a minute before they exit
    for process in alive:
        process.kill()
    for folder in set(re.findall(r"/tmp/asl-ray-\w+", command_lines)):
        shutil.rmtree(folder)

    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    summary = json.loads(done.stdout)
    assert done.returncode == 3  # two clips failed
    assert [line for line in done.stderr.splitlines() if "/42 clips" not in line] == []  # Ray prints nothing
    counted = {name: summary[name] for name in ("recognized", "not_tried", "stopped")}
    assert counted == {"recognized": NUM_CLIPS, "not_tried": 0, "stopped": None}
    assert 0 < summary["known_before"] <= known
    assert [failure["video"] for failure in summary["failures"]] == ["0/text.mp4", "empty.mp4"]
    assert_same_rows(pq.read_table(output / "results.parquet"), pq.read_table(expected / "results.parquet"))
    assert (output / "errors.jsonl").read_bytes() == (expected / "errors.jsonl").read_bytes()
    assert [line.split(",")[:3] for line in (output / "results.csv").read_text().splitlines()] == [
        line.split(",")[:3] for line in (expected / "results.csv").read_text().splitlines()
    ]
    recognized = [video for video in read_journal(output) if video not in ("0/text.mp4", "empty.mp4")]
    assert len(recognized) == len(set(recognized)) == NUM_CLIPS  # each was recognized once
    written = ["errors.jsonl", JOURNAL, "results.csv", "results.parquet"]
    assert sorted(path.name for path in output.iterdir()) == written


def test_second_signal_stops_at_once_with_a_summary(small_triton: LocalTriton, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    words = [archive, "--output", output, "--server", small_triton.address, "--engine", "ray", "--json"]
    command = [sys.executable, "-m", "asl_triton", "batch", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        wait_until(lambda: len(read_journal(output)) >= 3)
        for sign in (signal.SIGINT, signal.SIGTERM):
            running.send_signal(sign)
        summary = json.loads(running.communicate(timeout=60)[0])
    assert running.returncode == 3
    assert (summary["stopped"], summary["files"]) == ("interrupted twice: stopped at once", [])
    assert 0 < summary["recognized"] + len(summary["failures"]) < NUM_CLIPS + 2


def read_command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


# On the existing Ray cluster


def test_rerun_recognizes_only_missing_and_changed_clips(
    ray: None, small_triton: LocalTriton, few: Path, tmp_path: Path
) -> None:
    clips, output = tmp_path / "clips", tmp_path / "results"
    shutil.copytree(few, clips)
    first = run_on_ray(small_triton.address, clips, output)
    assert (first.recognized, len(first.failures), first.known_before) == (8, 1, 0)
    names = sorted(clip.name for clip in find_clips(clips))
    write_clip(clips / names[0], num_frames=20, seed=99)
    (clips / names[1]).unlink()
    write_clip(clips / "empty.mp4", num_frames=9, seed=100)
    observer = RecordingObserver()
    second = run_on_ray(small_triton.address, clips, output, observer)
    assert (second.recognized, second.failures, second.known_before) == (8, (), 6)
    assert sorted(outcome.video for outcome in observer.outcomes) == [names[0], "empty.mp4"]
    assert observer.skipped == 6
    table = pq.read_table(output / "results.parquet")
    assert sorted(set(table["video"].to_pylist())) == [name for name in names if name != names[1]]
    assert set(table.filter(table["video"].to_numpy() == names[0])["num_frames"].to_pylist()) == {20}
    assert not (output / "errors.jsonl").exists()


def test_clips_and_results_in_a_bucket(
    ray: None, small_triton: LocalTriton, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fsspec.filesystem("s3")
    store.put(f"{few}/", f"{BUCKET}/clips/", recursive=True)
    words = (f"{BUCKET}/clips", "--output", f"{BUCKET}/glosses", "--server", small_triton.address, "--top-k", 3)
    words = (*words, "--engine", "ray", "--ray-workers", 1)
    done = asl_triton(capsys, "batch", *words)
    assert done.code == 3
    assert "8 recognized; 1 failed" in done.output
    assert f"written: {BUCKET}/glosses/results.parquet, {BUCKET}/glosses/errors.jsonl" in done.output
    RecognitionBatch(find_clips(few), tmp_path, ["parquet"], RANKING).run(build_factory(small_triton.address))
    with store.open(f"{BUCKET}/glosses/results.parquet") as file:
        assert_same_rows(pq.read_table(file), pq.read_table(tmp_path / "results.parquet"))
    assert store.cat_file(f"{BUCKET}/glosses/errors.jsonl") == (tmp_path / "errors.jsonl").read_bytes()

    name = find_clips(few)[0].name
    store.put_file(few / "empty.mp4", f"{BUCKET}/clips/{name}")  # another object with the same name
    done = asl_triton(capsys, "batch", *words, "--json")
    summary = json.loads(done.out)
    assert (summary["recognized"], summary["known_before"], len(summary["failures"])) == (7, 7, 2)


def test_each_engine_resumes_a_run_of_the_other(
    ray: None, small_triton: LocalTriton, few: Path, tmp_path: Path
) -> None:
    clips = find_clips(few)
    observer = RecordingObserver(
        lambda outcome: os.kill(os.getpid(), signal.SIGINT) if len(observer.outcomes) == 2 else None
    )
    first = RecognitionBatch(clips, tmp_path, ["csv"], RANKING, BatchOptions(in_flight=1), observer).run(
        build_factory(small_triton.address)
    )
    assert 0 < first.recognized < 8
    second = run_on_ray(small_triton.address, few, tmp_path)
    assert (second.recognized, second.known_before, len(second.failures)) == (8, first.recognized, 1)
    third = RecognitionBatch(clips, tmp_path, ["csv"], RANKING).run(build_factory(small_triton.address))
    assert (third.recognized, third.known_before) == (8, 8)
    lines = read_journal(tmp_path)
    assert sorted(set(lines)) == sorted(clip.name for clip in clips)
    assert len([video for video in lines if video != "empty.mp4"]) == 8  # each was recognized once


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_journal_of_version_0_1_0_is_resumed(ray: None, tmp_path: Path, place: str) -> None:
    """Its Parquet parts are read, for clips in a folder and the same clips in a bucket."""
    for line in (EARLIER / "results" / JOURNAL).read_text().splitlines()[1:]:
        outcome = json.loads(line)
        (copy := tmp_path / "clips" / outcome["video"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EARLIER / "clips" / outcome["video"], copy)
        os.utime(copy, ns=(outcome["stamp"][1],) * 2)
    source, output = f"{tmp_path}/clips", f"{tmp_path}/results"
    written = EARLIER / ("ray_results" if place == "folder" else "bucket_results")
    if place == "folder":
        shutil.copytree(written, output)
    else:
        store = fsspec.filesystem("s3")
        store.put(f"{source}/", f"{BUCKET}/earlier/clips/", recursive=True)
        store.put(f"{written}/", f"{BUCKET}/earlier/results/", recursive=True)
        source, output = f"{BUCKET}/earlier/clips", f"{BUCKET}/earlier/results"
    before = Folder.parse(output).list()
    with serve(EARLIER / "model_repository") as triton:
        summary = run_on_ray(triton.address, source, output, ranking=Ranking())
    assert (summary.recognized, summary.known_before, len(summary.failures)) == (2, 2, 1)
    assert set(before) < set(Folder.parse(output).list())


def test_ctrl_c_finishes_clips_in_flight(ray: None, small_triton: LocalTriton, archive: Path, tmp_path: Path) -> None:
    observer = RecordingObserver(
        lambda outcome: os.kill(os.getpid(), signal.SIGINT) if len(observer.outcomes) == 1 else None
    )
    summary = run_on_ray(small_triton.address, archive, tmp_path, observer)
    assert (summary.stopped, len(observer.sentences)) == ("interrupted", 1)
    assert observer.sentences[0].startswith("SIGINT: finishing the clips in flight")
    known = summary.recognized + len(summary.failures)
    assert (known, known + summary.not_tried) == (len(observer.outcomes), NUM_CLIPS + 2)
    assert len(read_journal(tmp_path)) == known > 0
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 3 * summary.recognized


def test_killed_actor_is_restarted_and_loses_nothing(
    ray: None, small_triton: LocalTriton, archive: Path, expected: Path, tmp_path: Path
) -> None:
    def kill_actor(outcome: object) -> None:
        if len(observer.outcomes) == 1:
            actors = [
                p for p in psutil.Process().children(recursive=True) if " ".join(read_command_line(p)).startswith(ACTOR)
            ]
            actors[0].kill()

    observer = RecordingObserver(kill_actor)
    summary = run_on_ray(small_triton.address, archive, tmp_path, observer, workers=2)
    assert (summary.recognized, len(summary.failures), summary.stopped) == (NUM_CLIPS, 2, None)
    assert_same_rows(pq.read_table(tmp_path / "results.parquet"), pq.read_table(expected / "results.parquet"))


def test_lost_server_ends_the_run_and_partial_results_are_written(
    ray: None, small_repository: Path, archive: Path, tmp_path: Path
) -> None:
    with LocalTriton(small_repository) as doomed:
        observer = RecordingObserver(lambda outcome: doomed.stop() if len(observer.outcomes) == 1 else None)
        summary = run_on_ray(doomed.address, archive, tmp_path, observer, wait_s=0.5)
    assert summary.stopped is not None and summary.stopped.startswith("the server went away")
    assert summary.recognized > 0 and summary.not_tried > 0
    assert [sentence for sentence in observer.sentences if "is down: waiting up to" in sentence]
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 3 * summary.recognized


def test_run_stops_after_too_many_failures(ray: None, small_triton: LocalTriton, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(30):
        (clips / f"{number:02}.mp4").write_text("not a video")
    write_clip(clips / "00.mp4", num_frames=9)
    summary = run_on_ray(small_triton.address, clips, tmp_path / "results", max_failures=2)
    assert summary.stopped is not None
    assert re.match(r"2 clips have failed, as many as --max-failures allows\. The last: ", summary.stopped)
    assert len(summary.failures) >= 2 and all(isinstance(failure, Failure) for failure in summary.failures)


def test_missing_module_on_a_worker_is_reported(
    ray: None, small_triton: LocalTriton, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this process can import the recognizer's module, as on a worker without our package."""
    (tmp_path / "only_here.py").write_text(
        f"def make():\n    from asl_triton import AsyncRecognizer as Here\n    return Here({small_triton.address!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    source, output = Folder.parse(str(few)), Folder.parse(str(tmp_path / "results"))
    run = RayBatch(find_stored_clips(source), source, output, ["parquet"], RANKING)
    with pytest.raises(AslTritonError, match=r"lacks the Python module 'only_here': install .*'asl-triton\[ray\]'"):
        run.run(only_here.make)


def test_output_locked_by_another_run_is_refused(
    ray: None, small_triton: LocalTriton, few: Path, tmp_path: Path
) -> None:
    with (
        Journal(tmp_path),
        pytest.raises(AslTritonError, match="another run is writing to"),
    ):
        run_on_ray(small_triton.address, few, tmp_path)


def test_missing_server_is_reported_before_ray_starts(few: Path, tmp_path: Path) -> None:
    with socket.socket() as unused_socket:
        unused_socket.bind(("127.0.0.1", 0))
        with pytest.raises(AslTritonError, match="no server answers"):
            run_on_ray(f"127.0.0.1:{unused_socket.getsockname()[1]}", few, tmp_path)
    assert not read_journal(tmp_path)
