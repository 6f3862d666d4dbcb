"""Checks for everything that can go wrong between a client and a served model."""

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
# Triton in NVIDIA's container 26.07, with the critical fixes of 2025 and 2026. (25.07 has 2.59; one release a month.)
SAFE_VERSION = (2, 71)


@dataclass(frozen=True)
class Check:
    """The result of one check, and what to do if it did not pass."""

    name: str
    state: State
    found: str
    remedy: str = ""


async def run_checks(transport: Transport, model: str | None, repository: Path | None) -> AsyncIterator[Check]:
    """Check the client, the server, and each model (or only `model`). Stops if further checks make no sense.

    `repository` is the model repository, if this machine can see it. Its folders have the golden answers.
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
        yield Check("models", "failed", str(exc), "allow the model-repository protocol, or name a model with --model")
        return
    if not names:
        yield Check(
            "models", "failed", "the server has none", "create one with `asl-triton export`, then restart the server"
        )
        return
    yield Check("models", "ok", ", ".join(names))
    for name in names:
        async for check in examine_model(transport, name, repository):
            yield check
    with suppress(AslTritonError):  # with --model, the server may refuse to list all models
        if RECOGNIZE_SIGN in await transport.model_names():
            yield await check_recognize_sign(transport)


async def check_recognize_sign(transport: Transport) -> Check:
    """Check that the model that takes whole videos is alive. It should refuse an empty video with a sentence."""
    try:
        await transport.infer(RECOGNIZE_SIGN, {VIDEO: np.array([b""], np.object_)}, [GLOSS])
    except (ContractError, VideoError) as exc:
        if "VIDEO is empty" in str(exc) or "name one in the request" in str(exc):
            return Check(RECOGNIZE_SIGN, "ok", "works, and refuses an empty video")
        return Check(RECOGNIZE_SIGN, "failed", str(exc), "see the server's log, and restart it")
    except ServerError as exc:
        return Check(RECOGNIZE_SIGN, "failed", str(exc), "see the server's log, and restart it")
    return Check(
        RECOGNIZE_SIGN,
        "failed",
        "found a sign in an empty video",
        "it is not asl-triton's model: check the model repository",
    )


def check_version(address: str, server_version: str) -> Check:
    """Check whether the server is recent enough to face strangers."""
    numbers = tuple(int(part) for part in server_version.split(".")[:2] if part.isdigit())
    if numbers and numbers < SAFE_VERSION:
        return Check(
            "server",
            "warning",
            f"{address} is ready: Triton {server_version}, which predates many security fixes",
            "use it on this machine only; where strangers can reach it, run NVIDIA's container 26.11 or newer",
        )
    return Check("server", "ok", f"{address} is ready: Triton {server_version}")


async def examine_model(transport: Transport, name: str, repository: Path | None) -> AsyncIterator[Check]:
    """Check the contract, the labels and the golden answer of one model."""
    try:
        served = await read_model(transport, name)
    except LabelsError as exc:
        yield Check(f"{name}: labels", "failed", str(exc), "export the model again with the right --labels")
        return
    except ContractError as exc:
        trap = "NumPy 2" in str(exc)
        what = "numpy" if trap else "contract"
        remedy = "run pip install 'numpy<2' on the server" if trap else "export the model again with this version"
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
        remedy = "for other clips, serve weights made for them: `asl-triton fetch` lists some"
        caveat = bool(served.card.caveat)
        yield Check(f"{name}: purpose", "warning" if caveat else "ok", known, remedy if caveat else "")
    yield Check(f"{name}: labels", "ok", f"{len(served.labels)} glosses, {served.labels[0]!r} to {served.labels[-1]!r}")
    yield await check_golden(transport, served, repository)


async def check_golden(transport: Transport, served: ServedModel, repository: Path | None) -> Check:
    """Check that the served model answers the golden clip as its checkpoint does."""
    name = f"{served.name}: golden answer"
    path = None if repository is None else repository / served.name / "golden.npz"
    if path is None or not path.exists():
        where = "no repository given" if path is None else f"{path} does not exist"
        return Check(name, "warning", f"not checked: {where}", "name the model repository with --repository")
    try:
        golden = GoldenAnswer.load(path)
        tensor = served.make_input(render_golden(golden.num_frames))
        logits = (await transport.infer(served.name, {FRAMES: tensor}, [LOGITS]))[LOGITS][0]
    except AslTritonError as exc:
        return Check(name, "failed", str(exc), "see the server's log; if the error persists, export the model again")
    if logits.shape != golden.logits.shape:
        return Check(
            name, "failed", f"{logits.size} logits instead of {golden.logits.size}", f"{path} belongs to another model"
        )
    off = float(np.abs(logits - golden.served_logits).max())
    rounding = float(np.abs(logits - golden.logits).max())
    found = (
        f"logits differ by {off:.2g} from the exported model's, by {rounding:.2g} from the trained float32 network's"
    )
    best = served.labels[int(golden.logits.argmax())]
    if not off <= golden.tolerance:
        return Check(
            name,
            "failed",
            f"{found}; expected at most {golden.tolerance:.2g}",
            "the served weights are not from this folder, or the server computes wrongly: restart it, or export again",
        )
    same = logits.argmax() == golden.logits.argmax()
    return Check(name, "ok", f"{found}; the best gloss is {'the same' if same else 'different'} ({best!r})")
