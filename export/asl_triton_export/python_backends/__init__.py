"""`model.py` files for Triton's Python backend, which the exporter copies into model folders."""
