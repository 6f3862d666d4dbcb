"""`recognize_sign` while its model folder changes: a network never gets another network's labels."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from asl_triton.models.recognize_sign import REPOSITORIES_VARIABLE
from asl_triton.presets import PRESETS
from asl_triton_deploy import local
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.live.conftest import write_clip
from tests.live.sign_client import Answer, Refusal, ask
from tests.local_triton import serve
from tests.networks import GLOSSES, save_checkpoint

OLD = tuple(f"old {gloss}" for gloss in GLOSSES)
NEW = tuple(f"new {gloss}" for gloss in GLOSSES)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Export a model `signs` to two repositories, with different networks and labels."""
    folder = tmp_path_factory.mktemp("exported")
    for seed, labels in enumerate((OLD, NEW)):
        checkpoint = save_checkpoint(folder / f"{seed}.pt", seed=seed)
        export_model(load_checkpoint(checkpoint), labels, PRESETS["wlasl"], folder / str(seed), "signs")
    return folder / "0", folder / "1"


@pytest.fixture
def repository(exported: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(exported[0], tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def video(tmp_path: Path) -> bytes:
    return write_clip(tmp_path / "clip.mp4", 16).read_bytes()


@pytest.fixture
def use_foreign_launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes Triton start as from another launcher, which sets these model repositories."""

    def launch(repositories: str) -> None:
        monkeypatch.setattr(local, "REPOSITORIES_VARIABLE", "UNUSED_VARIABLE")
        monkeypatch.setenv(REPOSITORIES_VARIABLE, repositories)

    return launch


def read_logits(answer: Answer | Refusal, labels: tuple[str, ...]) -> list[float]:
    """Read the logits of an answer in class order. Fails if its glosses are not these labels."""
    assert isinstance(answer, Answer), answer
    by_class = dict(zip(answer.class_ids, zip(answer.glosses, answer.logits, strict=True), strict=True))
    assert tuple(by_class[c][0] for c in range(len(labels))) == labels
    return [by_class[c][1] for c in range(len(labels))]


def test_labels_change_only_with_the_loaded_network(
    repository: Path, exported: tuple[Path, Path], video: bytes, use_foreign_launcher: Callable[[str], None]
) -> None:
    with serve(repository, recognize_sign=True) as triton:
        shutil.rmtree(repository / "signs")
        assert read_logits(ask(triton.address, video), OLD)  # even the first request
        shutil.copytree(exported[1] / "signs", repository / "signs")
        before = read_logits(ask(triton.address, video), OLD)
    use_foreign_launcher("")  # the models are still found
    with serve(repository, recognize_sign=True) as triton:
        after = read_logits(ask(triton.address, video), NEW)
    assert after != pytest.approx(before, abs=0.1)


def test_folder_of_another_network_is_refused(
    repository: Path, exported: tuple[Path, Path], video: bytes, use_foreign_launcher: Callable[[str], None]
) -> None:
    use_foreign_launcher(str(exported[1]))
    with serve(repository, recognize_sign=True) as triton:
        for _ in range(2):
            refused = ask(triton.address, video)
            assert isinstance(refused, Refusal) and refused.status == "UNAVAILABLE", refused
            assert "signs does not give the answer in its folder" in refused.message
