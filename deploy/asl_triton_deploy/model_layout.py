"""Finds a repository's model folders, checks them before Triton sees them, and links them into its repository."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asl_triton.errors import AslTritonError
from asl_triton.models.recognize_sign import SIGN_MODELS

# The file that each backend loads from the version folder.
MODEL_FILES = {"pytorch": "model.pt", "openvino": "model.xml", "python": "model.py"}


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a `config.pbtxt`, named after its model."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def config(self, config_name: str | None) -> Path:
        """Return the configuration that Triton reads with `--model-config-name=<config_name>`."""
        custom = self.path / "configs" / f"{config_name}.pbtxt"
        return custom if config_name is not None and custom.is_file() else self.path / "config.pbtxt"

    def check(self, config_name: str | None) -> None:
        """Raise AslTritonError if a file that Triton needs is missing."""
        version = self._latest_version()
        if version is None:
            raise AslTritonError(
                f"{self.path} has no version folder '1': write the model again with `asl-triton export`"
            )
        backend = read_backend(self.config(config_name))
        if config_name == "wheel" and backend in MODEL_FILES and backend != "python":
            raise AslTritonError(
                f"{self.path} has no configs/wheel.pbtxt, and this Triton has no {backend} backend: "
                "write the model again with `asl-triton export`"
            )
        # On the Python backend, model.py loads the same file as the container's backend.
        for needed in (backend, read_backend(self.path / "config.pbtxt")):
            if needed in MODEL_FILES and not (version / MODEL_FILES[needed]).is_file():
                raise AslTritonError(
                    f"{self.path} has no {version.name}/{MODEL_FILES[needed]}: "
                    "write the model again with `asl-triton export`, or remove the folder"
                )

    def _latest_version(self) -> Path | None:
        versions = [path for path in self.path.iterdir() if path.name.isdecimal() and path.is_dir()]
        return max(versions, key=lambda path: int(path.name), default=None)


def read_backend(config: Path) -> str | None:
    """Return the backend that a `config.pbtxt` names."""
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise AslTritonError(f"cannot read {config}: {exc}") from exc
    match = re.search(r'\bbackend\s*:\s*"([^"]+)"', text)
    return match.group(1) if match else None


def find_models(repository: Path, names: Sequence[str] | None) -> list[ModelFolder]:
    """Find the models of `repository`, all or those in `names`. Hidden folders are skipped.

    Raises:
        AslTritonError: the repository does not exist, or has no models, or not those in `names`.
    """
    if not repository.is_dir():
        what = "is not a folder" if repository.exists() else "does not exist"
        raise AslTritonError(
            f"the model repository {repository} {what}: give --repository, or create one with `asl-triton export`"
        )
    if (repository / "config.pbtxt").is_file():
        raise AslTritonError(f"{repository} is a model, not a model repository: give --repository {repository.parent}")
    found = {
        path.name: ModelFolder(path)
        for path in sorted(repository.iterdir())
        if not path.name.startswith(".") and (path / "config.pbtxt").is_file()
    }
    if not found:
        raise AslTritonError(
            f"the model repository {repository} has no models (folders with a config.pbtxt): "
            "export one with `asl-triton export`"
        )
    for name in names or ():
        if name not in found:
            raise AslTritonError(f"{repository} has no model {name!r}, only {', '.join(found)}")
    return list(found.values()) if names is None else [found[name] for name in dict.fromkeys(names)]


def choose_models(repository: Path, names: Sequence[str] | None, *, recognize_sign: bool) -> list[ModelFolder]:
    """Choose the models to serve, with the sign models (the repository's own, or ours) or without them.

    Raises:
        AslTritonError: see `find_models`, or there are only sign models.
    """
    found = find_models(repository, names)
    own = {model.name: model for model in find_models(repository, None)}
    others = [model for model in found if model.name not in SIGN_MODELS]
    asked_for = [name for name in SIGN_MODELS if recognize_sign or name in (names or ())]
    if not others and not (names and asked_for):
        raise AslTritonError(
            f"the model repository {repository} has no asl-triton model: export one with `asl-triton export`"
        )
    return others + [own.get(name) or ModelFolder(find_shipped_models() / name) for name in asked_for]


def find_shipped_models() -> Path:
    """Return the folder of the models that ship with asl-triton, in the package or in the checkout."""
    package = Path(__file__).parent
    places = (package / "model_repository", package.parents[1] / "model_repository")
    return next((place for place in places if (place / SIGN_MODELS[0]).is_dir()), places[0])


def link_models(models: Iterable[ModelFolder], folder: Path) -> None:
    """Make `folder` a repository of links to `models` alone.

    Triton treats every subfolder as a model, even hidden ones. Its explicit mode could skip some, but would give every
    caller an API that loads code from the request.
    """
    folder.mkdir()
    for model in models:
        (folder / model.name).symlink_to(model.path.absolute(), target_is_directory=True)
