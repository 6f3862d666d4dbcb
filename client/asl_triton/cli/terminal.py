"""Terminal output that text from files, servers and callers cannot control.

An escape sequence in a gloss, a file name or a server's message could otherwise move the cursor, hide what was printed,
set the window's title or, in some terminals, write to the clipboard.
"""

import re
from collections.abc import Iterable
from typing import Any

import rich.console
import typer
from rich.segment import Segment

# Control characters except tab and line feed, and characters that change the text direction (Unicode TR36).
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Console(rich.console.Console):
    """A Rich console that prints control characters as escape sequences instead of sending them to the terminal."""

    def render(self, renderable: Any, options: rich.console.ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with control characters escaped. Rich's own control codes are separate segments and pass through."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=show_controls(segment.text))


def show_controls(text: str) -> str:
    """Return the text with control characters as Python escapes them, such as `\\x1b`."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(text: str, **options: Any) -> None:
    """Print a line of text to standard output, without Rich."""
    typer.echo(show_controls(text), **options)
