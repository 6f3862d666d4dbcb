"""What `make docs` does beyond MkDocs: pages from files outside docs/, the command line's reference, and their links.

A page of the site may be a README of the project, so that both have the same text. Its relative links, which a code
host can follow, become links of the site: to a page if the target is one, else to a copy of the file. A link that leads
nowhere is left as it is, and fails the strict build.
"""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
INCLUDED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "deploy/README.md": "deploy.md",
    "export/asl_triton_export/demo_checkpoint/README.md": "demo-checkpoint.md",
    "model_repository/README.md": "grpc.md",
}
SOURCES = {page: source for source, page in INCLUDED.items()}
CLI_PAGE = "cli.md"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in docs/, and the files that they link to."""
    for source, page in INCLUDED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, CLI_PAGE, content=describe_command_line()))
    for page in [file for file in files if file.is_documentation_page()]:
        folder = find_folder(page.src_uri)
        for _, target, _, _ in LINK.findall(page.content_string):
            path = resolve(folder, target)
            uri = get_uri(path) if path is not None and path.is_file() else None
            if path is not None and uri is not None and uri not in files.src_uris:
                files.append(
                    File.generated(config, uri, content=path.read_bytes(), inclusion=InclusionLevel.NOT_IN_NAV)
                )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point relative links at the site's pages and files."""
    folder = find_folder(page.file.src_uri)
    uri = page.file.src_uri

    def rewrite(link: re.Match[str]) -> str:
        before, target, anchor, after = link.groups()
        path = resolve(folder, target)
        if path is None or not path.is_file():
            return link[0]
        return f"{before}{os.path.relpath(get_uri(path), os.path.dirname(uri))}{anchor or ''}{after}"

    markdown = LINK.sub(rewrite, markdown)
    # A folder is no part of the site: its name stays, without the link.
    return re.sub(
        r"\[([^\]]+)\]\(([^)\s#:]+)\)",
        lambda link: link[1] if (path := resolve(folder, link[2])) is not None and path.is_dir() else link[0],
        markdown,
    )


def describe_command_line() -> str:
    """The reference of all commands, as Typer writes it."""
    command = [sys.executable, "-m", "typer", "asl_triton.cli.app", "utils", "docs"]
    text = subprocess.run(
        [*command, "--name", "asl-triton", "--title", "Command line"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    # In code, entities would be shown as they are. Only `<` has to be escaped in text.
    return re.sub(r"&(#x27|quot|gt|amp);", lambda entity: html.unescape(entity[0]), text)


def find_folder(uri: str) -> Path:
    """The folder that a page's relative links start from."""
    return (ROOT / SOURCES[uri]).parent if uri in SOURCES else (ROOT / "docs" / uri).parent


def resolve(folder: Path, target: str) -> Path | None:
    """The file or folder of the project that a relative link leads to, if it is one."""
    if re.match(r"[a-z]+:|/", target):
        return None
    path = Path(os.path.normpath(folder / target))
    return path if path.exists() and path.is_relative_to(ROOT) else None


def get_uri(path: Path) -> str:
    """Where a file of the project is on the site."""
    source = path.relative_to(ROOT).as_posix()
    return INCLUDED.get(source) or source.removeprefix("docs/")
