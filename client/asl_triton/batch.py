"""Many clips: decoding and asking overlap, each outcome goes to the journal at once, the files are written from it."""

import asyncio
import contextlib
import fnmatch
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from asl_triton.contract import ServedModel
from asl_triton.errors import AslTritonError, BusyError, ServerError, VideoError
from asl_triton.journal import AnyOutcome, Failure, Journal, Outcome
from asl_triton.predictions import Ranking, Recognition
from asl_triton.recognizer import AsyncRecognizer
from asl_triton.sinks import SINKS, Explained, JsonLinesSink, Sink
from asl_triton.timeline import Timeline
from asl_triton.video import EXTENSIONS

JOURNAL = "journal.jsonl"
ERRORS = "errors.jsonl"


@dataclass(frozen=True)
class Clip:
    """A clip of a batch: its file, and the name that results know it by."""

    path: Path
    name: str


AnyClip = TypeVar("AnyClip", bound=Clip)
Known = TypeVar("Known", Recognition, Timeline)


@dataclass(frozen=True)
class Summary:
    """How a batch ended. `stopped` says why it ended before its last clip, if it did; `rejected` counts the failures
    for which the server had no room."""

    recognised: int
    failures: tuple[Failure, ...]
    not_tried: int
    seconds: float
    files: tuple[Path, ...]
    stopped: str | None = None
    rejected: int = 0


def find_clips(folder: Path, glob: str | None = None) -> list[Clip]:
    """The videos in a folder and below, by name, or the one file: by extension, or by a pattern such as `*_front.mp4`.

    Hidden files and folders are left out.

    Raises:
        VideoError: there is no such folder, or no video in it.
    """
    if folder.is_file():
        return [Clip(folder, printable(folder.name))]
    if not folder.is_dir():
        raise VideoError(f"there is no folder {folder}")
    clips = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            path = Path(parent, file)
            name = path.relative_to(folder).as_posix()
            wanted = fnmatch.fnmatch(file, glob) or fnmatch.fnmatch(name, glob) if glob else is_video(path)
            if wanted and not file.startswith("."):
                clips.append(Clip(path, printable(name)))
    if not clips:
        what = f"file that matches {glob!r}" if glob else f"video ({', '.join(EXTENSIONS)})"
        raise VideoError(f"there is no {what} in {folder} or its sub-folders")
    return sorted(clips, key=lambda clip: clip.name)


def is_video(path: Path) -> bool:
    """Whether a file is named as a video is."""
    return path.suffix.lower() in EXTENSIONS


def printable(name: str) -> str:
    """A file's name as text on one line, also where its bytes are not UTF-8, or are meant for a terminal."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda control: f"\\x{ord(control[0]):02x}", text)


def run(
    recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[Clip],
    output: Path,
    formats: Sequence[str],
    ranking: Ranking,
    *,
    clips_at_once: int,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """Recognise clips, `clips_at_once` at a time, and write `OUTPUT/results.<format>` and `errors.jsonl`.

    Each outcome goes to the journal as soon as it is known, then to `on_outcome`; a clip that cannot be read or
    answered is a `Failure`. Where the server goes away, the disk fills or Ctrl-C comes, what is known is still written,
    and the summary says why it stopped; where nothing is known yet, the files of an earlier run stay as they are.

    Raises:
        AslTritonError: the server or its model cannot be used, or nothing can be written. Where outcomes are known but
            the files cannot be written, the journal stays, and the message names it.
        KeyboardInterrupt: Ctrl-C before the first outcome.
    """

    async def work(keep: Callable[[Clip, Outcome], None]) -> None:
        await recognise(recognizer, clips, ranking, clips_at_once, keep)

    def write(outcomes: Iterable[AnyOutcome]) -> tuple[Path, ...]:
        return write_results(outcomes, output, formats)

    return carry_out(work, write, output, num_clips=len(clips), on_outcome=on_outcome)


def carry_out(
    work: Callable[[Callable[[Clip, Known | Failure], None]], Coroutine[Any, Any, None]],
    write: Callable[[Iterator[AnyOutcome]], tuple[Path, ...]],
    output: Path,
    *,
    num_clips: int,
    on_outcome: Callable[[Known | Failure], None],
) -> Summary:
    """Do `work`, which hands the outcome of each clip to what it is given, and at the end `write` files of all of them.

    `run` says what becomes of outcomes; it and the timelines differ in what they ask and write.
    """
    began_s = time.perf_counter()
    with Journal(output / JOURNAL) as journal:

        def keep(clip: Clip, outcome: Known | Failure) -> None:
            journal.append(outcome)
            on_outcome(outcome)

        stopped = None
        try:
            asyncio.run(work(keep))
        except (AslTritonError, KeyboardInterrupt) as exc:
            if not len(journal):
                journal.discard()
                raise
            stopped = str(exc) or "interrupted"
        try:
            files = write(journal.outcomes())
        except AslTritonError as exc:
            raise AslTritonError(f"{exc}. The {len(journal)} outcomes so far are in {journal.path}") from exc
        failures = tuple(outcome for outcome in journal.outcomes() if isinstance(outcome, Failure))
        known = len(journal)
        journal.discard()
    return Summary(
        recognised=known - len(failures),
        failures=failures,
        not_tried=num_clips - known,
        seconds=time.perf_counter() - began_s,
        files=files,
        stopped=stopped,
        rejected=sum(failure.rejected for failure in failures),
    )


async def recognise(
    make_recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[AnyClip],
    ranking: Ranking,
    clips_at_once: int,
    keep: Callable[[AnyClip, Outcome], None],
) -> None:
    """Recognise clips, `clips_at_once` at a time, and hand the outcome of each to `keep` as soon as it is known.

    Raises:
        AslTritonError: the server or its model cannot be used. ServerError: it went away. And what `keep` raises.
    """

    async def ask(recognizer: AsyncRecognizer, clip: AnyClip) -> Recognition:
        return await recognizer.recognize(
            clip.path,
            top_k=ranking.top_k,
            vocabulary=ranking.vocabulary,
            min_confidence=ranking.min_confidence,
            name=clip.name,
        )

    def check(served: ServedModel) -> None:
        ranking.class_ids(served.labels)

    await ask_about(make_recognizer, clips, ask, keep, check=check, clips_at_once=clips_at_once)


async def ask_about(
    make_recognizer: Callable[[], AsyncRecognizer],
    clips: Sequence[AnyClip],
    ask: Callable[[AsyncRecognizer, AnyClip], Awaitable[Known]],
    keep: Callable[[AnyClip, Known | Failure], None],
    *,
    check: Callable[[ServedModel], None],
    clips_at_once: int,
) -> None:
    """`ask` about each clip, as `recognise` does; `check` raises what is wrong for all clips, before the first."""
    waiting = iter(clips)
    async with make_recognizer() as recognizer:

        async def work() -> None:
            for clip in waiting:
                try:
                    outcome: Known | Failure = await ask(recognizer, clip)
                except AslTritonError as exc:
                    if not isinstance(exc, VideoError) and await is_gone(recognizer):
                        raise ServerError(f"the server went away, or took its model out of service: {exc}") from exc
                    outcome = Failure(clip.name, str(exc), rejected=isinstance(exc, BusyError))
                keep(clip, outcome)

        check(await recognizer.model())  # a wrong server or vocabulary is told before any clip
        workers = [asyncio.create_task(work()) for _ in range(min(clips_at_once, len(clips)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def is_gone(recognizer: AsyncRecognizer) -> bool:
    """Whether the server answers no more, or no longer has the model: one that is stopping lets go of its models."""
    try:
        await recognizer.transport.server_version()
        await recognizer.transport.describe((await recognizer.model()).name)
    except AslTritonError:
        return True
    return False


def write_results(outcomes: Iterable[AnyOutcome], output: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Write `results.<format>` for each format, and `errors.jsonl` where there are failures: the paths written.

    Raises:
        AslTritonError: a file cannot be written.
    """
    sinks: list[Sink[Recognition]] = [SINKS[name](output / f"results.{name}") for name in formats]
    failures: list[Failure] = []
    with contextlib.ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(sink)
        for outcome in outcomes:
            if isinstance(outcome, Recognition):
                for sink in sinks:
                    sink.write(outcome)
            elif isinstance(outcome, Failure):
                failures.append(outcome)
    return (*(sink.path for sink in sinks), *write_failures(failures, output))


def write_failures(failures: Sequence[Failure], output: Path) -> tuple[Path, ...]:
    """Write `errors.jsonl` where there are failures; where there are none, that of a run before goes.

    Raises:
        AslTritonError: it cannot be written, or deleted.
    """
    path = output / ERRORS
    if not failures:
        with Explained(path):
            path.unlink(missing_ok=True)
        return ()
    with JsonLinesSink[Failure](path) as sink:
        for failure in failures:
            sink.write(failure)
    return (path,)
