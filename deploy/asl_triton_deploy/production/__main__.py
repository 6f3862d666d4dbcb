"""The entry point of the Triton image: copies and checks the models, then becomes `tritonserver`.

    python -m asl_triton_deploy.production [more flags of tritonserver]

`Settings` and `Places` read the environment.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asl_triton.errors import AslTritonError
from asl_triton.models.checksums import MANIFEST, copy_checked, read_checksums
from asl_triton.models.recognize_sign import REPOSITORIES_VARIABLE
from asl_triton_deploy.model_layout import find_shipped_models
from asl_triton_deploy.production.flags import FLAGS, MINIMUM_TRITON, Settings, Version, triton_flags
from asl_triton_deploy.production.health import STATE, HealthState
from asl_triton_deploy.triton_binary import choose_cpu_settings, has_gpu


@dataclass(frozen=True)
class Places:
    """Paths in the image and its mounts.

    `repository` is the operator's, `checksums` lists the files of it that may be served, and `served` is where they are
    copied to, the only path that must be writable. `image_models` come with asl-triton and match its version.
    """

    repository: Path = Path("/models")
    checksums: Path = Path("/models") / MANIFEST
    served: Path = Path("/run/asl-triton/models")
    image_models: Path = field(default_factory=find_shipped_models)
    flags: Path = FLAGS

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> "Places":
        """Read ASL_TRITON_REPOSITORY, _CHECKSUMS, _SERVED, _IMAGE_MODELS and _FLAGS."""
        named = {name: variables.get(f"ASL_TRITON_{name.upper()}") for name in cls.__dataclass_fields__}
        places = {name: Path(value) for name, value in named.items() if value}
        if "repository" in places:
            places.setdefault("checksums", places["repository"] / MANIFEST)
        return cls(**places)


def main() -> int:
    """Become `tritonserver`, or print one sentence that says why not and return 1."""
    try:
        command = prepare(os.environ, sys.argv[1:])
        # On a GPU the CPU settings would only waste memory.
        settings = {} if has_gpu() else choose_cpu_settings()
        os.execve(command[0], command, {**os.environ, **settings, **name_repositories(command)})
    except AslTritonError as exc:
        print(f"error: {exc}", file=sys.stderr)
    except OSError as exc:
        print(f"error: cannot run {command[0]}: {exc.strerror}", file=sys.stderr)
    return 1


def prepare(variables: Mapping[str, str], more_flags: Sequence[str] = ()) -> list[str]:
    """Copy the models that may be served, and return the command that serves them.

    Raises:
        AslTritonError: a setting is invalid, Triton is too old, or the models differ from the list.
    """
    binary = shutil.which("tritonserver", path=variables.get("PATH"))
    if binary is None:
        raise AslTritonError("there is no `tritonserver` on PATH: this is the entry point of NVIDIA's container")
    places = Places.from_environment(variables)
    ours = sorted(path.name for path in places.image_models.iterdir()) if places.image_models.is_dir() else []
    settings = Settings.from_environment(variables, (places.served, *([places.image_models] if ours else [])))
    triton = triton_version(variables)
    models = copy_checked(read_checksums(places.checksums), places.repository, places.served, without=ours)
    if not models:
        raise AslTritonError(f"{places.checksums} lists no model in {places.repository}: run `asl-triton export`")
    print(f"asl-triton: checked {', '.join(models)}; from the image: {', '.join(ours) or 'none'}", file=sys.stderr)
    command = [binary, *triton_flags(settings, triton, places.flags), *more_flags]
    http_port = [flag.partition("=")[2] for flag in command if flag.startswith("--http-port=")][-1]
    state = HealthState(os.getpid(), int(http_port), settings.health_key, models)
    try:
        state.save(places.served.parent / STATE)
    except OSError as exc:
        raise AslTritonError(f"cannot write {places.served.parent / STATE}, for the health check: {exc}") from exc
    return command


def name_repositories(command: Sequence[str]) -> dict[str, str]:
    """Return the environment that passes this command's model repositories to `recognize_sign`."""
    folders = [flag.partition("=")[2] for flag in command if flag.startswith("--model-repository=")]
    return {REPOSITORIES_VARIABLE: os.pathsep.join(folders)}


def triton_version(variables: Mapping[str, str]) -> Version:
    """Read this image's Triton version from the environment that NVIDIA sets. If it is not set, assume the minimum."""
    said = variables.get("TRITON_SERVER_VERSION") or ".".join(map(str, MINIMUM_TRITON))
    major, _, rest = said.partition(".")
    minor = rest.partition(".")[0]
    if not (major.isdecimal() and minor.isdecimal()):
        raise AslTritonError(f"TRITON_SERVER_VERSION is {said!r}, not a version such as 2.75.0")
    version = (int(major), int(minor))
    if version < MINIMUM_TRITON:
        raise AslTritonError(
            f"Triton {said} has known vulnerabilities that NVIDIA fixed before 26.11 "
            f"({MINIMUM_TRITON[0]}.{MINIMUM_TRITON[1]}): build the image from a newer container"
        )
    return version


if __name__ == "__main__":
    sys.exit(main())
