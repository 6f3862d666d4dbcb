"""The model folders of a repository: found, checked before Triton sees them, and laid out for it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asl_triton.errors import AslTritonError
from asl_triton.models.recognize_sign import SIGN_MODELS

# The file that each backend loads, in the version folder.
MODEL_FILES = {"pytorch": "model.pt", "openvino": "model.xml", "python": "model.py"}


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a `config.pbtxt`; its name is the model's."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def config(self, config_name: str | None) -> Path:
        """The configuration that Triton reads when it is started with `--model-config-name=<config_name>`."""
        custom = self.path / "configs" / f"{config_name}.pbtxt"
        return custom if config_name is not None and custom.is_file() else self.path / "config.pbtxt"

    def check(self, config_name: str | None) -> None:
        """Raise AslTritonError when a file that Triton needs is missing."""
        version = self._latest_version()
        if version is None:
            raise AslTritonError(f"{self.path} has no version folder '1': `asl-triton export` writes a whole model")
        backend = read_backend(self.config(config_name))
        if config_name == "wheel" and backend in MODEL_FILES and backend != "python":
            raise AslTritonError(
                f"{self.path} has no configs/wheel.pbtxt, and this Triton has no {backend} backend: "
                "write the model again with `asl-triton export`"
            )
        # The Python backend's model.py of a model loads the same file as the container's backend.
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
    """The backend that a `config.pbtxt` names."""
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise AslTritonError(f"cannot read {config}: {exc}") from exc
    match = re.search(r'\bbackend\s*:\s*"([^"]+)"', text)
    return match.group(1) if match else None


def find_models(repository: Path, names: Sequence[str] | None) -> list[ModelFolder]:
    """The models of `repository` by name, all or those named; hidden folders are an exporter's unfinished work.

    Raises AslTritonError when there is no repository, no model in it, or none of a given name.
    """
    if not repository.is_dir():
        what = "is not a folder" if repository.exists() else "does not exist"
        raise AslTritonError(
            f"the model repository {repository} {what}: give --repository, or make one with `asl-triton export`"
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
            f"the model repository {repository} holds no model (a folder with a config.pbtxt): "
            "make one with `asl-triton export`"
        )
    for name in names or ():
        if name not in found:
            raise AslTritonError(f"{repository} holds no model {name!r}: it holds {', '.join(found)}")
    return list(found.values()) if names is None else [found[name] for name in dict.fromkeys(names)]


def choose_models(repository: Path, names: Sequence[str] | None, *, recognize_sign: bool) -> list[ModelFolder]:
    """The models of `repository`, as `find_models`, with the sign models (ours where it has none) or without them.

    Raises AslTritonError as `find_models` does, and where there is no other model than those.
    """
    found = find_models(repository, names)
    own = {model.name: model for model in find_models(repository, None)}
    others = [model for model in found if model.name not in SIGN_MODELS]
    asked_for = [name for name in SIGN_MODELS if recognize_sign or name in (names or ())]
    if not others and not (names and asked_for):
        raise AslTritonError(
            f"the model repository {repository} holds no asl-triton model: make one with `asl-triton export`"
        )
    return others + [own.get(name) or ModelFolder(find_shipped_models() / name) for name in asked_for]


def find_shipped_models() -> Path:
    """The folder of the models that come with asl-triton: in the package, or in the checkout that it is used from."""
    package = Path(__file__).parent
    places = (package / "model_repository", package.parents[1] / "model_repository")
    return next((place for place in places if (place / SIGN_MODELS[0]).is_dir()), places[0])


def link_models(models: Iterable[ModelFolder], folder: Path) -> None:
    """Make `folder` a repository of just `models`, by links.

    Triton takes every sub-folder for a model, hidden ones too. Its explicit mode could leave some out, but opens to
    every caller an API that loads code from the request.
    """
    folder.mkdir()
    for model in models:
        (folder / model.name).symlink_to(model.path.absolute(), target_is_directory=True)
