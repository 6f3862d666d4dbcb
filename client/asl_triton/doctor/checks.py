"""What can be wrong between a client and a served model, checked one after another."""

import os
import platform
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np

from asl_triton.errors import AslTritonError, ContractError, LabelsError, ServerError, VideoError
from asl_triton.models.golden import GoldenAnswer, render_golden
from asl_triton.models.recognize_sign import GLOSS, RECOGNIZE_SIGN, VIDEO
from asl_triton.models.served import FRAMES, LOGITS, ServedModel, list_models, read_model
from asl_triton.transport.base import Transport

State = Literal["ok", "warning", "failed"]
# The server in NVIDIA's container 26.07, with the critical fixes of 2025 and 2026 (25.07 is 2.59, and one a month).
SAFE_VERSION = (2, 71)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and what to do where it is not well."""

    name: str
    state: State
    found: str
    remedy: str = ""


async def run_checks(transport: Transport, model: str | None, repository: Path | None) -> AsyncIterator[Check]:
    """Look at the client, the server, and each model (or the one named); stops where going on makes no sense.

    `repository` is where the model folders lie if this machine can see them: the golden answers are in them.
    """
    yield Check(
        "client",
        "ok",
        f"asl-triton {version('asl-triton')}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"PyAV {av.__version__}, OpenCV {cv2.__version__}, {os.cpu_count()} cores",
    )
    try:
        server_version = await transport.server_version()
    except ServerError as exc:
        yield Check("server", "failed", str(exc), "start one with `asl-triton serve`, or name it with --server")
        return
    yield check_version(transport.address, server_version)
    try:
        names = [model] if model else [description.name for description in await list_models(transport)]
    except AslTritonError as exc:
        yield Check("models", "failed", str(exc), "allow the model-repository protocol, or name one with --model")
        return
    if not names:
        yield Check("models", "failed", "none is served", "write one with `asl-triton export`, then restart")
        return
    yield Check("models", "ok", ", ".join(names))
    for name in names:
        async for check in examine_model(transport, name, repository):
            yield check
    with suppress(AslTritonError):  # whoever names a model may be refused the list of all
        if RECOGNIZE_SIGN in await transport.model_names():
            yield await check_recognize_sign(transport)


async def check_recognize_sign(transport: Transport) -> Check:
    """Whether the model that takes whole videos is alive: it refuses an empty one with a sentence."""
    try:
        await transport.infer(RECOGNIZE_SIGN, {VIDEO: np.array([b""], np.object_)}, [GLOSS])
    except (ContractError, VideoError) as exc:
        if "VIDEO is empty" in str(exc) or "name one in the request" in str(exc):
            return Check(RECOGNIZE_SIGN, "ok", "is there, and refuses an empty video")
        return Check(RECOGNIZE_SIGN, "failed", str(exc), "see the server's log, and restart it")
    except ServerError as exc:
        return Check(RECOGNIZE_SIGN, "failed", str(exc), "see the server's log, and restart it")
    return Check(RECOGNIZE_SIGN, "failed", "found a sign in an empty video", "it is not ours: see the model repository")


def check_version(address: str, server_version: str) -> Check:
    """Whether the server is one that may face strangers."""
    numbers = tuple(int(part) for part in server_version.split(".")[:2] if part.isdigit())
    if numbers and numbers < SAFE_VERSION:
        return Check(
            "server",
            "warning",
            f"{address} is ready: Triton {server_version}, older than many security fixes",
            "right for this machine alone; where strangers reach it, run NVIDIA's container 26.11 or newer",
        )
    return Check("server", "ok", f"{address} is ready: Triton {server_version}")


async def examine_model(transport: Transport, name: str, repository: Path | None) -> AsyncIterator[Check]:
    """The contract, the labels and the golden answer of one model."""
    try:
        served = await read_model(transport, name)
    except LabelsError as exc:
        yield Check(f"{name}: labels", "failed", str(exc), "export the model again with the right --labels")
        return
    except ContractError as exc:
        trap = "NumPy 2" in str(exc)
        what = "numpy" if trap else "contract"
        remedy = "pip install 'numpy<2' where the server runs" if trap else "export the model again with this version"
        yield Check(f"{name}: {what}", "failed", str(exc), remedy)
        return
    except AslTritonError as exc:
        yield Check(f"{name}: answer", "failed", str(exc), "see the server's log")
        return
    yield Check(
        f"{name}: contract",
        "ok",
        f"{served.datatype} frames, preset {served.preset.name}, {served.precision}, checkpoint "
        f"{served.checkpoint_sha256[:12]}, exported by {served.exporter}",
    )
    if known := served.card.describe():
        remedy = "for other clips, serve weights that were made for them: `asl-triton fetch` lists some"
        caveat = bool(served.card.caveat)
        yield Check(f"{name}: purpose", "warning" if caveat else "ok", known, remedy if caveat else "")
    yield Check(f"{name}: labels", "ok", f"{len(served.labels)} glosses, {served.labels[0]!r} to {served.labels[-1]!r}")
    yield await check_golden(transport, served, repository)


async def check_golden(transport: Transport, served: ServedModel, repository: Path | None) -> Check:
    """Whether the served model answers the golden clip as its checkpoint does."""
    name = f"{served.name}: golden answer"
    path = None if repository is None else repository / served.name / "golden.npz"
    if path is None or not path.exists():
        where = "no repository given" if path is None else f"there is no {path}"
        return Check(name, "warning", f"not checked: {where}", "name the model repository with --repository")
    try:
        golden = GoldenAnswer.load(path)
        tensor = served.make_input(render_golden(golden.num_frames))
        logits = (await transport.infer(served.name, {FRAMES: tensor}, [LOGITS]))[LOGITS][0]
    except AslTritonError as exc:
        return Check(name, "failed", str(exc), "see the server's log; export the model again if it goes on")
    if logits.shape != golden.logits.shape:
        return Check(
            name, "failed", f"{logits.size} logits instead of {golden.logits.size}", f"{path} is of another model"
        )
    off = float(np.abs(logits - golden.served_logits).max())
    rounding = float(np.abs(logits - golden.logits).max())
    found = f"logits differ by {off:.2g} from the export's, by {rounding:.2g} from the network's as trained in float32"
    best = served.labels[int(golden.logits.argmax())]
    if not off <= golden.tolerance:
        return Check(
            name,
            "failed",
            f"{found}; {golden.tolerance:.2g} was expected at most",
            "the served weights are not those of this folder, or the server computes wrongly: restart it, export again",
        )
    same = logits.argmax() == golden.logits.argmax()
    return Check(name, "ok", f"{found}; the best gloss is {'the same' if same else 'another'} ({best!r})")
