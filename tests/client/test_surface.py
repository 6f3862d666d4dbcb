"""What `import asl_triton` gives."""

from types import ModuleType

import asl_triton


def test_public_surface_is_whole_and_sorted() -> None:
    public = {name for name, value in vars(asl_triton).items() if not isinstance(value, ModuleType)}
    assert {name for name in public if not name.startswith("_")} == set(asl_triton.__all__)
    assert asl_triton.__all__ == sorted(asl_triton.__all__, key=lambda name: (not name.isupper(), name))
    assert {error.__name__ for error in asl_triton.AslTritonError.__subclasses__()} <= set(asl_triton.__all__)
