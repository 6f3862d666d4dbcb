"""Reports on taught signs."""

from asl_triton.teaching.report import report_signs
from tests.client.teaching.taught import show, teach


def test_good_examples_need_no_advice() -> None:
    for report in report_signs(teach(4, 5)):
        assert (report.examples, report.recognized, report.alike, report.outliers) == (5, 5, None, ())
        assert report.agreement is not None and report.agreement > 0.5
        assert report.advice == ""


def test_few_examples_give_advice() -> None:
    one, two = report_signs(teach(1, 1))[0], report_signs(teach(1, 2))[0]
    assert (one.recognized, one.agreement, one.advice) == (None, None, "2 more examples would help")
    assert two.advice == "1 more example would help"


def test_clip_of_another_sign_is_reported_as_an_outlier() -> None:
    taught = teach(4, 4)
    taught.add("sign0", show(2, 77), source="sign0/wrong.mp4")
    reports = {report.gloss: report for report in report_signs(taught)}
    assert reports["sign0"].outliers == ("sign0/wrong.mp4",)
    assert reports["sign0"].advice == "look at sign0/wrong.mp4: not like the other examples"
    assert not reports["sign1"].outliers and not reports["sign2"].outliers


def test_identical_signs_are_reported() -> None:
    taught = teach(3, 4)
    for take in range(4):
        taught.add("twin", show(1, 20 + take), source=f"twin/{take}.mp4")
    reports = {report.gloss: report for report in report_signs(taught)}
    assert {reports["twin"].alike, reports["sign1"].alike} <= {"sign1", "twin", None}
    assert "sign1" in reports["twin"].advice or "twin" in reports["sign1"].advice
    assert reports["sign0"].advice == ""
