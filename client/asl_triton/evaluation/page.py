"""An evaluation as one HTML page: it needs no network, no script, and shows in light and dark."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from asl_triton.evaluation.report import EvaluationReport

CLASSES_SHOWN = 200  # in the table; `evaluation.json` has them all
CONFUSIONS_SHOWN = 20
NAMES_SHOWN = 200
PLOT = 300  # pixels of the reliability diagram's sides


def render(report: EvaluationReport) -> str:
    """The page. Glosses and file names come from outside: the template escapes all that it is given."""
    pages = Environment(
        loader=PackageLoader("asl_triton", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["percent"] = format_percent
    return pages.get_template("evaluation.html").render(
        report=report,
        evaluation=report.evaluation,
        classes_shown=CLASSES_SHOWN,
        confusions_shown=CONFUSIONS_SHOWN,
        names_shown=NAMES_SHOWN,
        plot=PLOT,
    )


def format_percent(share: float) -> str:
    """A share for people: one decimal, and 100.0 % only where it is all."""
    shown = f"{share:.1%}"
    return "99.9\N{NO-BREAK SPACE}%" if shown == "100.0%" and share < 1 else shown.replace("%", "\N{NO-BREAK SPACE}%")
