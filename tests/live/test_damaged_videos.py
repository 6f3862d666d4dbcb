"""`recognize_sign` under thousands of damaged videos: each gets an answer or an error, and no other process dies.

The test runs for twelve seconds by default, with up to three thousand files. ASL_TRITON_FUZZ_S and
ASL_TRITON_FUZZ_FILES change that. ASL_TRITON_FUZZ_FIRST sets the number of the first file: files are reproducible by
number.
"""

import itertools
import os
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc

from asl_triton_deploy.local import LocalTriton
from tests.client.mutations import mutated, seeds
from tests.live.conftest import write_clip
from tests.live.sign_client import Answer, Refusal, ask, ask_stream, ask_with, build_inputs
from tests.live.sign_processes import find_decoders, find_stubs, list_processes, wait_until

SECONDS = float(os.environ.get("ASL_TRITON_FUZZ_S", "12"))
FILES = int(os.environ.get("ASL_TRITON_FUZZ_FILES", "3000"))
FIRST = int(os.environ.get("ASL_TRITON_FUZZ_FIRST", "0"))
MIN_FILES = 200  # even on a slow machine
CALLERS = 8
STREAM_EVERY = 16  # 1 in 16 files goes to `recognize_sign_stream`
MAX_GROWTH_BYTES = 32 * 2**20  # per process, except the networks, which keep the memory of their largest batch


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return seeds(tmp_path_factory.mktemp("seeds"))


def test_damaged_videos_do_not_affect_other_requests(
    strict_triton: LocalTriton, originals: list[bytes], tmp_path: Path
) -> None:
    good = write_clip(tmp_path / "good.mp4", 24).read_bytes()
    numbers, outcomes = itertools.count(FIRST), Counter[str]()

    def send_until(deadline: float, last: int) -> None:
        with tritonclient.grpc.InferenceServerClient(strict_triton.address) as client:
            while time.monotonic() < deadline and (number := next(numbers)) < last:
                video = mutated(number, originals)
                if number % STREAM_EVERY:
                    answer = ask_with(client, build_inputs(video))
                else:
                    answer = ask_stream(strict_triton.address, video)[-1]
                outcomes[classify(number, answer)] += 1

    def run(seconds: float, files: int) -> None:
        last = next(numbers) + files
        with ThreadPoolExecutor(CALLERS) as callers:
            futures = [callers.submit(send_until, time.monotonic() + seconds, last) for _ in range(CALLERS)]
        for future in futures:
            future.result()

    run(SECONDS / 8, FILES // 8)  # warm-up: memory used by the first requests does not count as growth
    before = {process.pid: read_private_memory(process) for process in list_processes(strict_triton)}
    stubs = {stub.pid for stub in find_stubs(strict_triton)}
    run(SECONDS * 7 / 8, FILES - FILES // 8)
    print("damaged videos:", dict(outcomes))

    assert sum(outcomes.values()) >= min(MIN_FILES, FILES - 2)
    assert isinstance(ask(strict_triton.address, good), Answer)
    assert isinstance(ask_stream(strict_triton.address, good)[-1], Answer)
    assert {stub.pid for stub in find_stubs(strict_triton)} == stubs
    assert wait_until(lambda: find_decoders(strict_triton) == [])
    after = {process.pid: read_private_memory(process) for process in list_processes(strict_triton)}
    assert set(after) == set(before)
    networks = {stub.pid for stub in find_stubs(strict_triton) if "/small/" in " ".join(stub.cmdline())}
    grown = {pid: after[pid] - before[pid] for pid in after if pid not in networks}
    assert {pid: grown_bytes for pid, grown_bytes in grown.items() if grown_bytes > MAX_GROWTH_BYTES} == {}


def read_private_memory(process: psutil.Process) -> int:
    """Read the bytes that a process does not share. Data passed between processes is in shared memory."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def classify(number: int, answer: Answer | Refusal) -> str:
    """Name the outcome of a damaged video. Fails on an unexpected answer or error."""
    if isinstance(answer, Answer):
        assert len(answer.glosses) == 7, number
        return "answered"
    assert answer.status == "INVALID_ARGUMENT", (number, answer)
    assert answer.message.startswith("VIDEO "), (number, answer)
    assert "\n" not in answer.message, (number, answer)
    crash = re.search(r"ends the decoder \((\w+)\)", answer.message)
    return f"decoder ended by {crash.group(1)}" if crash else "refused"
