"""The commands, links and examples in the README and the documentation work."""

import re
import shlex
import shutil
from importlib.metadata import metadata
from pathlib import Path

import pytest
import typer.main

from asl_triton.cli.app import app
from asl_triton_deploy.local import LocalTriton
from tests.paths import ROOT

OWN_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md")
PAGES = [*(ROOT / page for page in OWN_PAGES), ROOT / "model_repository" / "README.md", *(ROOT / "docs").glob("*.md")]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
EXTRAS = metadata("asl-triton").get_all("Provides-Extra") or []


def find_code_blocks(text: str, language: str) -> list[str]:
    """Find the fenced code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def find_commands(name: str) -> list[tuple[str, list[str]]]:
    """Find the lines in console blocks that call a program. Returns each page and its words, without comments."""
    found = []
    for page, text in TEXTS.items():
        lines = "\n".join(find_code_blocks(text, "console")).replace("\\\n", " ").splitlines()
        parts = [part.strip() for line in lines for part in re.split(r" && | \| ", line)]
        found += [(page, shlex.split(part, comments=True)[1:]) for part in parts if part.split()[:1] == [name]]
    return found


def format_id(value: object) -> str:
    """Format a parameter as a test ID."""
    return " ".join(value) if isinstance(value, list) else str(value)


@pytest.mark.parametrize(("page", "words"), find_commands("asl-triton"), ids=format_id)
def test_commands_and_their_options_exist(page: str, words: list[str]) -> None:
    command = typer.main.get_group(app).commands[words[0]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words[1:] if word.startswith("-")} <= known


def test_readme_lists_every_command() -> None:
    listed = set(re.findall(r"^\| `asl-triton ([a-z]+)", README, flags=re.MULTILINE))
    assert listed == set(typer.main.get_group(app).commands)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(("page", "words"), find_commands("make"), ids=format_id)
def test_make_targets_exist(page: str, words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"\n{words[0]}:" in makefile
    for variable in words[1:]:
        assert f"\n{variable.split('=')[0]} ?=" in makefile


@pytest.mark.parametrize(("page", "words"), find_commands("pip"), ids=format_id)
def test_extras_exist_and_are_not_installed_from_a_package_index(page: str, words: list[str]) -> None:
    for word in words:
        if found := re.search(r"(.*)\[([\w,-]+)\]$", word):
            assert found[1] in (".", "tritonclient") or found[1].endswith(".whl"), word
            assert found[1] == "tritonclient" or set(found[2].split(",")) <= set(EXTRAS)
    assert "asl-triton" not in words


@pytest.mark.parametrize("page", TEXTS)
def test_relative_links_exist(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / target).exists(), target


def find_example(page: str, word: str) -> str:
    """Find the Python example of a page that contains a word."""
    (example,) = (block for block in find_code_blocks(TEXTS[page], "python") if word in block)
    return example


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_example_prints_ranks(
    page: str,
    small_triton: LocalTriton,
    clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (clips / "a.mp4").rename(clips / "clip.mp4")
    monkeypatch.chdir(clips)
    exec(find_example(page, "top_k=10").replace("localhost:8001", small_triton.address), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(rank) for rank in range(1, 8)]  # of seven glosses
    assert all(line.endswith("%") for line in lines)


def test_grpc_example_prints_a_gloss(
    demo_triton: LocalTriton, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "a.mp4").rename(clips / "clip.mp4")
    monkeypatch.chdir(clips)
    exec(find_example("README.md", "recognize_sign").replace("localhost:8001", demo_triton.address), {})
    gloss, _, confidence = capsys.readouterr().out.strip().rpartition(" ")
    assert gloss and 0 <= float(confidence) <= 1


def test_python_example_teaches_a_sign(
    small_triton: LocalTriton, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(clips / "a.mp4", clips / "coffee-1.mp4")
    (clips / "a.mp4").rename(clips / "clip.mp4")
    monkeypatch.chdir(clips)
    exec(find_example("docs/python.md", "SignDictionary").replace("localhost:8001", small_triton.address), {})
    assert capsys.readouterr().out == "coffee\n"
