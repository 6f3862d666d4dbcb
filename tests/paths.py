"""Places in the checkout that tests of several packages use."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"  # beside a checkout of ours; a user's clone has none
DEMO_BUNDLE = ROOT / "export" / "asl_triton_export" / "demo_checkpoint"
EAF_SCHEMA = ROOT / "tests" / "client" / "writers" / "eaf.xsd"
