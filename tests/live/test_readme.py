"""What the READMEs show is there and runs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main

from asl_triton.cli.app import app
from asl_triton_deploy.local import LocalTriton
from tests.paths import ROOT

TEACHING = ROOT / "docs" / "teaching.md"
PAGES = [ROOT / "README.md", ROOT / "model_repository" / "README.md", TEACHING]
README = PAGES[0].read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """The lines of console blocks that call a program, without their comments."""
    text = README + TEACHING.read_text(encoding="utf-8")
    lines = "\n".join(blocks(text, "console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.split()[:1] == [name]]


@pytest.mark.parametrize("words", commands("asl-triton"), ids=" ".join)
def test_commands_and_their_options_exist(words: list[str]) -> None:
    command = typer.main.get_group(app).commands[words[0]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words[1:] if word.startswith("-")} <= known


def test_every_command_is_in_the_readme() -> None:
    told = set(re.findall(r"^\| `asl-triton ([a-z]+)", README, flags=re.MULTILINE))
    assert told == set(typer.main.get_group(app).commands)


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"\n{words[0]}:" in makefile
    for variable in words[1:]:
        assert f"\n{variable.split('=')[0]} ?=" in makefile


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_into_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_python_example_prints_ranks(
    small_triton: LocalTriton, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = next(block for block in blocks(README, "python") if "SignDictionary" not in block)
    (clips / "a.mp4").rename(clips / "clip.mp4")
    monkeypatch.chdir(clips)
    exec(example.replace("localhost:8001", small_triton.address), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(rank) for rank in range(1, 8)]  # of seven glosses
    assert all(line.endswith("%") for line in lines)


def test_python_example_teaches_a_sign(
    small_triton: LocalTriton, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = (block for block in blocks(README, "python") if "SignDictionary" in block)
    shutil.copy(clips / "a.mp4", clips / "coffee-1.mp4")
    (clips / "a.mp4").rename(clips / "clip.mp4")
    monkeypatch.chdir(clips)
    exec(example.replace("localhost:8001", small_triton.address), {})
    assert capsys.readouterr().out == "coffee\n"
