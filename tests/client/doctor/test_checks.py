"""The checks between a client and a served model: the state and remedy of each."""

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from asl_triton.doctor.checks import Check, check_version, run_checks
from asl_triton.errors import ContractError, ServerError
from asl_triton.models.golden import GoldenAnswer, render_golden
from asl_triton.presets import PRESETS
from asl_triton.transport.base import Array, ModelDescription
from asl_triton.transport.fake import FakeTransport
from tests.client.served import GLOSSES, answering, described, fake, in_order

LOGITS = np.array(in_order(np.zeros(1)), np.float32)


def check_all(transport: FakeTransport, model: str | None = None, repository: Path | None = None) -> dict[str, Check]:
    async def collect() -> dict[str, Check]:
        return {check.name: check async for check in run_checks(transport, model, repository)}

    checks = asyncio.run(collect())
    assert all(check.remedy for check in checks.values() if check.state != "ok")
    return checks


def get_states(checks: Mapping[str, Check]) -> dict[str, str]:
    return {name: check.state for name, check in checks.items()}


def save_golden(repository: Path, logits: Array = LOGITS, served: Array = LOGITS, name: str = "signs") -> Path:
    (repository / name).mkdir(parents=True)
    path = repository / name / "golden.npz"
    GoldenAnswer(logits, served, 32, tolerance=0.5).save(path)
    return path


def test_all_is_well(tmp_path: Path) -> None:
    save_golden(tmp_path)
    tensors: list[Array] = []

    def answer(tensor: Array) -> Array:
        tensors.append(tensor)
        return LOGITS

    checks = check_all(fake(answer=answer), repository=tmp_path)
    assert set(get_states(checks).values()) == {"ok"}
    names = ["client", "server", "models", "signs: contract", "signs: labels", "signs: golden answer"]
    assert list(checks) == names
    assert "6 glosses, 'book' to 'mother'" in checks["signs: labels"].found
    assert "UINT8 frames, preset wlasl, fp32" in checks["signs: contract"].found
    assert "differ by 0 from the exported model's" in checks["signs: golden answer"].found
    assert np.array_equal(tensors[-1], render_golden(32))


class UnreachableServer(FakeTransport):
    async def server_version(self) -> str:
        raise ServerError("no server answers at fake:8001")


def test_unreachable_server_ends_the_checks() -> None:
    checks = check_all(UnreachableServer({}, (), answering(in_order)))
    assert get_states(checks) == {"client": "ok", "server": "failed"}
    assert "asl-triton serve" in checks["server"].remedy


@pytest.mark.parametrize(("version", "state"), [
    ("2.51.0", "warning"), ("2.70.9", "warning"), ("2.71.0", "ok"), ("2.100.0", "ok"), ("3.0", "ok"), ("fake", "ok"),
    ("", "ok"),
])  # fmt: skip
def test_server_without_the_security_fixes_is_a_warning(version: str, state: str) -> None:
    check = check_version("here:1", version)
    assert (check.state, bool(check.remedy)) == (state, state == "warning")


class RestrictedServer(FakeTransport):
    async def model_names(self) -> list[str]:
        raise ServerError("the server at fake:8001 refused the call: the --api-key is incorrect")


def test_refused_index_ends_the_checks_unless_a_model_is_named() -> None:
    transport = RestrictedServer({"signs": described()}, GLOSSES, answering(in_order))
    assert get_states(check_all(transport))["models"] == "failed"
    assert get_states(check_all(transport, "signs"))["signs: contract"] == "ok"


def test_server_without_a_model_ends_the_checks() -> None:
    checks = check_all(FakeTransport({"other": ModelDescription("other", "1", {}, {}, {})}, (), answering(in_order)))
    assert get_states(checks)["models"] == "failed"
    assert "asl-triton export" in checks["models"].remedy


def make_transport(**fields: object) -> FakeTransport:
    """Make a server whose model description differs in `fields`."""
    model = dataclasses.replace(described(), **fields)  # type: ignore[arg-type]
    return FakeTransport({"signs": model}, GLOSSES, answering(in_order))


@pytest.mark.parametrize(("transport", "check"), [
    (make_transport(inputs={}), "signs: contract"),
    (make_transport(parameters={"asl_triton.preset": "{}"}), "signs: contract"),
    (make_transport(labeled=frozenset()), "signs: labels"),
    (FakeTransport({"signs": described()}, (*GLOSSES[:5], ""), answering(in_order)), "signs: labels"),
], ids=["tensors", "preset", "no labels", "too few labels"])  # fmt: skip
def test_broken_contract_fails(transport: FakeTransport, check: str) -> None:
    checks = check_all(transport)
    assert get_states(checks)[check] == "failed"
    assert "export the model again" in checks[check].remedy


def make_failing(error: Exception, after: int = 0) -> FakeTransport:
    """Make a server whose model raises `error` after `after` answers."""
    calls: list[int] = []

    def answer(tensor: Array) -> Array:
        calls.append(1)
        if len(calls) > after:
            raise error
        return LOGITS

    return fake(answer=answer)


def test_numpy_2_on_the_server_is_detected() -> None:
    empty = ContractError("signs answered with an empty LOGITS__0. ... that Python has NumPy 2, ...")
    checks = check_all(make_failing(empty))
    assert get_states(checks)["signs: numpy"] == "failed"
    assert checks["signs: numpy"].remedy == "run pip install 'numpy<2' on the server"


def test_server_that_does_not_answer_the_first_request_fails() -> None:
    assert get_states(check_all(make_failing(ServerError("it is stuck"))))["signs: answer"] == "failed"


def test_missing_model_fails() -> None:
    checks = check_all(fake(), "nobody")
    assert get_states(checks)["nobody: contract"] == "failed"
    assert "its models: signs" in checks["nobody: contract"].found


@pytest.mark.parametrize("repository", [None, "empty"])
def test_missing_golden_answer_is_a_warning(tmp_path: Path, repository: str | None) -> None:
    checks = check_all(fake(), repository=tmp_path / repository if repository else None)
    assert get_states(checks)["signs: golden answer"] == "warning"
    assert "--repository" in checks["signs: golden answer"].remedy


FAR, NEAR, NAN = LOGITS + 0.6, LOGITS + 0.4, LOGITS * np.nan


@pytest.mark.parametrize(("logits", "served", "state", "found"), [
    (LOGITS, NEAR, "ok", "differ by 0.4 from the exported model's, by 0 from the trained float32 network's"),
    (FAR, LOGITS, "ok", "by 0.6 from the trained float32 network's"),
    (-LOGITS, LOGITS, "ok", "the best gloss is different ('mother')"),
    (LOGITS, FAR, "failed", "differ by 0.6 from the exported model's, by 0 from the trained float32 network's"),
    (LOGITS, NAN, "failed", "differ by nan"),
    (LOGITS[:5], LOGITS[:5], "failed", "6 logits instead of 5"),
], ids=["near", "rounded", "another gloss", "far", "NaN", "of another model"])  # fmt: skip
def test_golden_answer_is_compared(tmp_path: Path, logits: Array, served: Array, state: str, found: str) -> None:
    save_golden(tmp_path, logits, served)
    check = check_all(fake(), repository=tmp_path)["signs: golden answer"]
    assert check.state == state
    assert found in check.found


def test_golden_answer_that_is_damaged_or_cannot_be_compared_fails(tmp_path: Path) -> None:
    save_golden(tmp_path).write_bytes(b"damaged")
    assert get_states(check_all(fake(), repository=tmp_path))["signs: golden answer"] == "failed"
    save_golden(tmp_path / "other")
    stuck = make_failing(ServerError("it is stuck"), after=1)
    assert get_states(check_all(stuck, repository=tmp_path / "other"))["signs: golden answer"] == "failed"


def test_every_model_is_checked(tmp_path: Path) -> None:
    models = {name: described(PRESETS[preset], name) for name, preset in (("a", "bsl1k"), ("b", "wlasl"))}
    save_golden(tmp_path, name="b")
    checks = check_all(FakeTransport(models, GLOSSES, answering(in_order)), repository=tmp_path)
    assert checks["models"].found == "a, b"
    assert (checks["a: golden answer"].state, checks["b: golden answer"].state) == ("warning", "ok")
