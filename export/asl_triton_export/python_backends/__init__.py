"""The `model.py` files that are copied into model folders."""
