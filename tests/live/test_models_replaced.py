"""`recognize_sign` while the model behind it is replaced: no gloss is ever named with another network's labels."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asl_triton.presets import PRESETS
from asl_triton_deploy import local
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.live.conftest import write_clip
from tests.live.sign_client import Answer, Refusal, ask
from tests.networks import GLOSSES, save_checkpoint

OLD = tuple(f"old {gloss}" for gloss in GLOSSES)
NEW = tuple(f"new {gloss}" for gloss in GLOSSES)


def export(repository: Path, labels: tuple[str, ...], seed: int) -> None:
    checkpoint = save_checkpoint(repository.parent / "weights.pt", seed=seed)
    export_model(load_checkpoint(checkpoint), labels, PRESETS["wlasl"], repository, "signs", force=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    export(tmp_path / "models", OLD, seed=1)
    return tmp_path / "models"


@pytest.fixture
def watching_triton(repository: Path) -> Iterator[LocalTriton]:
    """A server that loads what changes in its repository, some seconds later."""
    options = local.build_server_flags
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            local,
            "server_options",
            lambda *arguments: [
                *(option for option in options(*arguments) if not option.startswith("--model-control-mode")),
                "--model-control-mode=poll",
                "--repository-poll-secs=4",
            ],
        )
        with LocalTriton(repository, recognize_sign=True) as triton:
            yield triton


def test_labels_change_with_the_network_and_not_with_the_folder(
    watching_triton: LocalTriton, repository: Path, tmp_path: Path
) -> None:
    video = write_clip(tmp_path / "clip.mp4", 16).read_bytes()
    before = ask(watching_triton.address, video)
    assert isinstance(before, Answer) and set(before.glosses) == set(OLD)
    export(repository, NEW, seed=2)
    answers: list[Answer | Refusal] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        answers.append(ask(watching_triton.address, video))
        after = answers[-1]
        if isinstance(after, Answer) and set(after.glosses) == set(NEW):
            break
    assert isinstance(after, Answer) and set(after.glosses) == set(NEW)
    logits = {"old": dict(zip(before.class_ids, before.logits, strict=True))}
    logits["new"] = dict(zip(after.class_ids, after.logits, strict=True))
    for answer in answers:
        if isinstance(answer, Refusal):  # between the one and the other
            assert answer.status in ("UNAVAILABLE", "NOT_FOUND"), answer
            continue
        (network,) = {gloss.split()[0] for gloss in answer.glosses}
        assert answer.logits == pytest.approx([logits[network][c] for c in answer.class_ids], abs=1e-3)
