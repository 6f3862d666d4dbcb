"""`recognize_sign` under thousands of damaged videos at once: each gets an answer or a sentence, and nothing else dies.

By default as many as twelve seconds take, three thousand at most. ASL_TRITON_FUZZ_S and ASL_TRITON_FUZZ_FILES say more,
ASL_TRITON_FUZZ_FIRST the number of the first file; the same number is the same file.
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
from tests.live.sign_client import Answer, Refusal, ask, ask_with, inputs, listen
from tests.live.sign_processes import decoders, family, stubs_of, wait_until

SECONDS = float(os.environ.get("ASL_TRITON_FUZZ_S", "12"))
FILES = int(os.environ.get("ASL_TRITON_FUZZ_FILES", "3000"))
FIRST = int(os.environ.get("ASL_TRITON_FUZZ_FIRST", "0"))
FEWEST = 200  # that a slow machine gets through
CALLERS = 8
STREAMED = 16  # one of so many goes to the other model
MAX_GROWTH_BYTES = 32 * 2**20  # of each process but the networks', which keep what their largest batch took


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return seeds(tmp_path_factory.mktemp("seeds"))


def test_damaged_videos_cost_nobody_else_anything(
    strict_triton: LocalTriton, originals: list[bytes], tmp_path: Path
) -> None:
    good = write_clip(tmp_path / "good.mp4", 24).read_bytes()
    numbers, told = itertools.count(FIRST), Counter[str]()

    def call_until(deadline: float, last: int) -> None:
        with tritonclient.grpc.InferenceServerClient(strict_triton.address) as client:
            while time.monotonic() < deadline and (number := next(numbers)) < last:
                video = mutated(number, originals)
                if number % STREAMED:
                    answer = ask_with(client, inputs(video))
                else:
                    answer = listen(strict_triton.address, video)[-1]
                told[check(number, answer)] += 1

    def run(seconds: float, files: int) -> None:
        last = next(numbers) + files
        with ThreadPoolExecutor(CALLERS) as callers:
            ending = [callers.submit(call_until, time.monotonic() + seconds, last) for _ in range(CALLERS)]
        for caller in ending:
            caller.result()

    run(SECONDS / 8, FILES // 8)  # what a process holds once it has worked is no growth
    before = {process.pid: own_memory(process) for process in family(strict_triton)}
    stubs = {stub.pid for stub in stubs_of(strict_triton)}
    run(SECONDS * 7 / 8, FILES - FILES // 8)
    print("damaged videos:", dict(told))

    assert sum(told.values()) >= min(FEWEST, FILES - 2)
    assert isinstance(ask(strict_triton.address, good), Answer)
    assert isinstance(listen(strict_triton.address, good)[-1], Answer)
    assert {stub.pid for stub in stubs_of(strict_triton)} == stubs
    assert wait_until(lambda: decoders(strict_triton) == [])
    after = {process.pid: own_memory(process) for process in family(strict_triton)}
    assert set(after) == set(before)
    networks = {stub.pid for stub in stubs_of(strict_triton) if "/small/" in " ".join(stub.cmdline())}
    grown = {pid: after[pid] - before[pid] for pid in after if pid not in networks}
    assert {pid: grown_bytes for pid, grown_bytes in grown.items() if grown_bytes > MAX_GROWTH_BYTES} == {}


def own_memory(process: psutil.Process) -> int:
    """The bytes that a process shares with no other; what goes between them is in shared memory."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def check(number: int, answer: Answer | Refusal) -> str:
    """What came of a damaged video, in a word; fails for what may not come of it."""
    if isinstance(answer, Answer):
        assert len(answer.glosses) == 7, number
        return "answered"
    assert answer.status == "INVALID_ARGUMENT", (number, answer)
    assert answer.sentence.startswith("VIDEO "), (number, answer)
    assert "\n" not in answer.sentence, (number, answer)
    crash = re.search(r"ends the decoder \((\w+)\)", answer.sentence)
    return f"decoder ended by {crash.group(1)}" if crash else "refused"
