"""The commands that `make demo` prints at the end work as printed."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from asl_triton.cli.app import app
from asl_triton.presets import PRESETS
from asl_triton_demo.signer import render_demo
from asl_triton_deploy.local import LocalTriton
from tests.exports import export_shared, load_demo
from tests.paths import ROOT


def list_commands() -> list[list[str]]:
    """Return the words of each command."""
    done = subprocess.run(["make", "--silent", "next-commands"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [words for line in done.stdout.splitlines()[2:] if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a folder with the files that `make demo` creates and the commands use."""
    folder = tmp_path_factory.mktemp("clone")
    (clip,) = render_demo(folder / "build" / "demo" / "clips", ("book",), (2_000_000,))
    assert clip.name == "book_2000000.mp4"
    models = folder / "build" / "demo" / "model_repository"
    models.mkdir()
    export_shared(tmp_path_factory, *load_demo(), PRESETS["wlasl"], models, "demo")
    return folder


def run_command(words: list[str], folder: Path) -> str:
    """Run a command of `.venv/bin` in this Python's environment, and return its output."""
    program = Path(words[0])
    assert program.parent == Path(".venv/bin")
    start = [sys.executable, *(["-m", "asl_triton"] if program.name == "asl-triton" else [])]
    done = subprocess.run([*start, *words[1:]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_and_options_exist() -> None:
    commands = list_commands()
    assert [Path(words[0]).name for words in commands] == ["asl-triton", "asl-triton", "asl-triton", "python"]
    for words in commands[:3]:
        command = typer.main.get_group(app).commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_clip_is_recognized(demo_folder: Path) -> None:
    assert "book" in run_command(list_commands()[0], demo_folder)


def test_python_prints_the_gloss(demo_folder: Path) -> None:
    words = list_commands()[-1]
    with LocalTriton(demo_folder / "build" / "demo" / "model_repository") as triton:
        # Another server may be using the default port on this machine.
        code = words[-1].replace("Recognizer()", f"Recognizer('{triton.address}')")
        assert run_command([*words[:-1], code], demo_folder) == "book\n"
