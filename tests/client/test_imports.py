"""Who imports whom: the client none of the other packages, and its files only those below them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asl_triton

CLIENT = Path(asl_triton.__file__).parent
OURS = ("asl_triton_export", "asl_triton_deploy", "asl_triton_ui")
OTHERS = (*OURS, "torch", "lightning", "gradio", "safetensors", "gdown", "httpx", "ray")
FILES = sorted(".".join(path.relative_to(CLIENT).with_suffix("").parts) for path in CLIENT.rglob("*.py"))
# `export` has options that `finetune` takes over.
SHARED_BY_COMMANDS = tuple(
    f"commands.{name}" for name in ("options", "extras", "archive", "progress", "connection", "engine", "export")
)
COMMANDS = tuple(file for file in FILES if file.startswith("commands.") and file != "commands.__init__")
# From the ground up: a file imports only from the lines above its own.
FLOORS = (
    ("errors", "background", "container", "interruption", "connectivity"),
    ("presets", "checksums", "addresses", "security", "descriptions", "handshake", "tracing", "lock"),
    ("faults", "fake_transport", "regions"),
    ("retries", "shared_memory_key"),
    ("shared_memory",),
    ("cargo",),
    ("labels", "golden", "video", "transport"),
    ("clips", "memory", "feeds", "listing", "cluster"),
    ("capture", "storage"),
    ("contract", "predictions"),
    ("timeline", "shots"),
    ("live_window", "live_state", "reading"),
    ("live_signs", "admission"),
    ("stitching", "sending", "pace"),
    ("inquiry", "decoder_process", "catalogue"),
    ("decoder", "register"),
    ("sign_service", "decoding"),
    ("recognizer", "journal", "doctor", "server_state"),
    ("live", "absence"),
    ("watch", "workers"),
    ("together",),
    ("sinks", "doctor_metrics"),
    ("timeline_sinks", "batch", "cluster_journal"),
    ("dataset", "timeline_batch", "documents", "cluster_worker"),
    ("cluster_course",),
    ("cluster_batch",),
    ("answers",),
    ("evaluation",),
    ("evaluation_report",),
    ("evaluation_page", "load"),
    ("load_source",),
    ("load_levels",),
    ("load_report",),
    ("load_page",),
    ("__init__", "commands.__init__"),
    SHARED_BY_COMMANDS[:4],
    SHARED_BY_COMMANDS[4:],
    tuple(file for file in COMMANDS if file not in SHARED_BY_COMMANDS),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {file: floor for floor, files in enumerate(FLOORS) for file in files}


def imported(file: str, within_functions: bool = False) -> Iterator[str]:
    """The modules that a file imports when it is imported itself; those of `TYPE_CHECKING` are not."""
    tree = ast.parse((CLIENT / (file.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            is_package = (CLIENT.parent / (node.module or "").replace(".", "/")).is_dir()
            yield from (f"{node.module}.{name.name}" if is_package else str(node.module) for name in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            queue += node.orelse
        elif within_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            queue += ast.iter_child_nodes(node)


@pytest.mark.parametrize("file", FILES)
def test_file_imports_none_of_the_other_packages(file: str) -> None:
    assert [name for name in imported(file) if name.split(".")[0] in OTHERS] == []


@pytest.mark.parametrize("file", FILES)
def test_file_imports_only_from_floors_below(file: str) -> None:
    assert file in FLOOR_OF, f"give {file}.py its place among FLOORS"
    for name in imported(file, within_functions=True):
        if name.split(".")[0] == "asl_triton":
            below = name.removeprefix("asl_triton.") if name != "asl_triton" else "__init__"
            assert FLOOR_OF[below] < FLOOR_OF[file], f"{file}.py imports {below}.py, which is not below it"


def test_every_file_with_a_floor_is_there() -> None:
    assert set(FLOOR_OF) <= set(FILES)


def test_command_line_loads_none_of_the_other_packages() -> None:
    code = f"import sys, asl_triton.cli; print([name for name in {OTHERS} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_import_starts_and_changes_nothing() -> None:
    code = (
        "import logging, signal, threading\n"
        "before = (list(logging.root.handlers), logging.root.level, signal.getsignal(signal.SIGINT))\n"
        "import asl_triton\n"
        "assert before == (logging.root.handlers, logging.root.level, signal.getsignal(signal.SIGINT))\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_client_can_be_imported_where_python_has_no_ssl() -> None:
    """As inside Triton's Python stub, which is a build of its own and may not load this Python's module."""
    code = "import sys; sys.modules['_ssl'] = None; import asl_triton.sign_service, asl_triton.recognizer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
