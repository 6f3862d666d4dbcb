"""Turns a checkpoint into a model that Triton serves: I3D, checkpoints, export formats, the model folder."""
