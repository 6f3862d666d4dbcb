"""The command that installs an extra depends on how asl-triton was installed."""

import json
from pathlib import Path
from typing import Any

import pytest

from asl_triton.errors import AslTritonError
from asl_triton.extras import format_install_command, require_extra

WHEEL = "asl_triton-1.2.3-py3-none-any.whl"


def write_install_metadata(folder: Path, direct_url: dict[str, Any] | None) -> None:
    """Write the metadata that pip leaves after an installation."""
    metadata = folder / "asl_triton-1.2.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: asl-triton\nVersion: 1.2.3\n")
    if direct_url is not None:
        (metadata / "direct_url.json").write_text(json.dumps(direct_url))


@pytest.mark.parametrize(("direct_url", "command"), [
    ({"url": "file:///src/asl-triton", "dir_info": {"editable": True}},
     "pip install --editable '/src/asl-triton[serve]'"),
    ({"url": "file:///src/asl-triton", "dir_info": {}}, "pip install '/src/asl-triton[serve]'"),
    ({"url": "file:///my%20src/clone", "dir_info": {}}, "pip install '/my src/clone[serve]'"),
    ({"url": f"file:///tmp/{WHEEL}", "archive_info": {}}, f"pip install '/tmp/{WHEEL}[serve]'"),
    ({"url": f"https://example.org/{WHEEL}", "archive_info": {}},
     f"pip install 'asl-triton[serve] @ https://example.org/{WHEEL}'"),
    ({"url": "https://example.org/asl-triton.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
     "pip install 'asl-triton[serve] @ git+https://example.org/asl-triton.git@abc123'"),
    (None, "pip install 'asl-triton[serve]'"),
], ids=["editable", "clone", "spaces", "wheel", "wheel on the web", "git", "index"])  # fmt: skip
def test_command_names_the_source_of_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_url: dict[str, Any] | None, command: str
) -> None:
    write_install_metadata(tmp_path, direct_url)
    monkeypatch.syspath_prepend(tmp_path)
    assert format_install_command("serve") == command


def test_missing_module_is_reported_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_install_metadata(tmp_path, {"url": f"file:///tmp/{WHEEL}", "archive_info": {}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AslTritonError) as failure, require_extra("elan", "--format eaf"):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    missing, command = str(failure.value).split(": ")
    assert missing == "--format eaf needs the Python module 'no_such_module', which is not installed"
    assert command == f"pip install '/tmp/{WHEEL}[elan]'"
