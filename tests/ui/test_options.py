"""The page's accounts, and the limits on what visitors send."""

from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError
from asl_triton_ui.options import Address, PageOptions, read_auth


def test_accounts_come_from_the_option_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text("ada:one:two\n\nbob:three\n")
    assert read_auth("eve:four", path) == (("eve", "four"), ("ada", "one:two"), ("bob", "three"))
    assert read_auth(None, None) == ()


def test_bad_accounts_are_reported_without_the_secret(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfa")
    for pair, path, says in (
        ("hunter2", None, "account 1 of --auth or --auth-file is not of the form user:password"),
        (":hunter2", None, "is not of the form user:password"),
        ("ada:", None, "is not of the form user:password"),
        (None, tmp_path / "nowhere", "No such file"),
        (None, tmp_path / "empty", "is empty"),
        (None, tmp_path / "bytes", "is not UTF-8 text"),
    ):
        with pytest.raises(AslTritonError, match=says) as error:
            read_auth(pair, path)
        assert "hunter2" not in str(error.value)


def test_limits_follow_the_options() -> None:
    limits = PageOptions(max_upload_mb=20, max_minutes=2).limits
    assert (limits.max_bytes, limits.max_duration_s) == (20_000_000, 120)


@pytest.mark.parametrize(
    ("address", "is_open"),
    [
        (Address(), False),
        (Address("localhost"), False),
        (Address("::1"), False),
        (Address("0.0.0.0"), True),
        (Address("192.168.1.2"), True),
        (Address(share=True), True),
    ],
)
def test_page_is_open_if_other_machines_can_reach_it(address: Address, is_open: bool) -> None:
    assert address.is_open is is_open
