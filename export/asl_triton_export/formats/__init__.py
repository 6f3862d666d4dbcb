"""The formats that a model is served in."""
