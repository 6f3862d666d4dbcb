"""HTML from templates, which escape all text from files, servers and visitors."""

from functools import cache
from typing import TYPE_CHECKING, Any

from asl_triton.extras import require_extra

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def load_templates(package: str = "asl_triton") -> "Environment":
    """Load the templates in a package's folder `templates`. Their filter `percent` is `format_percent`.

    Raises:
        AslTritonError: Jinja2 is not installed.
    """
    with require_extra("reports"):
        from jinja2 import Environment, PackageLoader, StrictUndefined
    templates = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["percent"] = format_percent
    return templates


def render_template(name: str, **values: Any) -> str:
    """Fill in one of this package's templates.

    Raises:
        AslTritonError: Jinja2 is not installed.
    """
    return load_templates().get_template(name).render(**values)


def format_percent(share: float) -> str:
    """Format a fraction as a percentage with one decimal. Only 1 is shown as 100.0 %."""
    shown = f"{share:.1%}"
    return "99.9\N{NO-BREAK SPACE}%" if shown == "100.0%" and share < 1 else shown.replace("%", "\N{NO-BREAK SPACE}%")
