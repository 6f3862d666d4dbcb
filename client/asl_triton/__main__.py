"""`python -m asl_triton`, the same as `asl-triton`."""

from asl_triton.cli.app import main

if __name__ == "__main__":
    main()
