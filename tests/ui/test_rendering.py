"""Everything that visitors and servers send is escaped and shown as text."""

from asl_triton.results import Prediction, Recognition
from asl_triton_ui.rendering import format_count, format_seconds, render, render_problem

SCRIPT = "<script>alert(1)</script>"


def test_names_and_glosses_are_escaped() -> None:
    predictions = (Prediction(1, SCRIPT, 0, 0.4, 0.0),)
    recognition = Recognition(SCRIPT, SCRIPT, predictions, True, 9, 0.4, 1, 0.1, 0.2, (SCRIPT,))
    shown = render("answer.html", recognition=recognition, threshold=0.5)
    assert "<script" not in shown.lower() and shown.count("&lt;script&gt;") >= 4
    assert "unsure: nothing reaches the threshold of 50" in shown


def test_problem_is_rendered_as_a_sentence() -> None:
    assert "<strong>No.</strong> The clip is empty.</p>" in render_problem("the clip is empty", "No.")
    assert "Really?</p>" in render_problem("really?")
    assert "</strong> a.mp4 is empty.</p>" in render_problem("a.mp4 is empty")


def test_numbers_are_readable() -> None:
    assert [text.replace("\xa0", " ") for text in (format_seconds(2.5), format_seconds(150.2))] == [
        "2.50 s",
        "2:30.2 min",
    ]
    assert [format_count(n, w).replace("\xa0", " ") for n, w in ((1, "gloss"), (2000, "gloss"), (3, "clip"))] == [
        "1 gloss",
        "2,000 glosses",
        "3 clips",
    ]
