"""The public surface of `asl_triton`."""

import inspect
from types import ModuleType

import asl_triton
from asl_triton import AsyncRecognizer, Recognizer, errors


def test_public_surface_is_complete_and_sorted() -> None:
    public = {name for name, value in vars(asl_triton).items() if not isinstance(value, ModuleType)}
    assert {name for name in public if not name.startswith("_")} | set(asl_triton._LAZY) == set(asl_triton.__all__)
    assert {getattr(asl_triton, name).__name__ for name in asl_triton._LAZY} == set(asl_triton._LAZY)
    assert asl_triton.__all__ == sorted(asl_triton.__all__, key=lambda name: (not name.isupper(), name))
    documented = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert "ConnectionLostError" in documented
    assert documented <= set(asl_triton.__all__)


def test_every_recognizer_method_has_its_own_docstring() -> None:
    for kind in (Recognizer, AsyncRecognizer):
        methods = {name: method for name, method in vars(kind).items() if inspect.isfunction(method) and name[0] != "_"}
        assert len(methods) >= 9
        for name, method in methods.items():
            text = inspect.getdoc(method) or ""
            assert text and not text.startswith("As `AsyncRecognizer"), f"{kind.__name__}.{name}"
