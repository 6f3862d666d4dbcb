"""From a checkpoint to a model that Triton serves: I3D, its files, TorchScript, the model folder."""
