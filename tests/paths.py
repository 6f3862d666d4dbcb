"""Paths in the checkout that the tests of several packages use."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"  # next to our own checkouts; a user's clone does not have it
DEMO_BUNDLE = ROOT / "export" / "asl_triton_export" / "demo_checkpoint"
EAF_SCHEMA = ROOT / "tests" / "client" / "writers" / "eaf.xsd"
