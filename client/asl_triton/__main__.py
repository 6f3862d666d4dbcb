"""`python -m asl_triton`, the same as `asl-triton`."""

from asl_triton.cli.app import main

main()
