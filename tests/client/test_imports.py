"""Importing has no side effects and loads no package of an extra. import-linter checks the layers (pyproject.toml)."""

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
    "opentelemetry",  # imported by the first request
)


def test_import_has_no_side_effects_and_cli_loads_no_optional_packages() -> None:
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


def test_client_can_be_imported_without_ssl() -> None:
    """Triton's Python stub is a separate build of Python that may be unable to load our ssl module."""
    code = (
        "import sys; sys.modules['_ssl'] = None; "
        "import asl_triton.triton_backend.service, asl_triton.recognizer.async_client"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
