"""What importing does: nothing, and no package of an extra. import-linter holds the layers (pyproject.toml)."""

import subprocess
import sys

OTHERS = (
    "asl_triton_export",
    "asl_triton_deploy",
    "asl_triton_ui",
    "torch",
    "lightning",
    "gradio",
    "gdown",
    "httpx",
    "ray",
    "pyarrow",
    "pympi",
    "jinja2",
    "opentelemetry",  # which the first request imports
)


def test_import_starts_and_changes_nothing_and_command_line_loads_none_of_the_other_packages() -> None:
    code = (
        "import logging, signal, sys, threading\n"
        "before = (list(logging.root.handlers), logging.root.level, signal.getsignal(signal.SIGINT))\n"
        "import asl_triton\n"
        "assert before == (logging.root.handlers, logging.root.level, signal.getsignal(signal.SIGINT))\n"
        "assert threading.active_count() == 1\n"
        f"import asl_triton.cli.app; print([name for name in {OTHERS} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_client_can_be_imported_where_python_has_no_ssl() -> None:
    """As inside Triton's Python stub, which is a build of its own and may not load this Python's module."""
    code = (
        "import sys; sys.modules['_ssl'] = None; "
        "import asl_triton.triton_backend.service, asl_triton.recognizer.async_client"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
