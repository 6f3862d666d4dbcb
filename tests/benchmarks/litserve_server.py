"""A LitServe server for a TorchScript file, as in LitServe's documentation: frames in a form, logits as JSON.

    python litserve_server.py MODEL.pt PORT

LitServe is not among our own packages, so `tests.benchmarks.engines` installs it and starts this script.
"""

import sys

import litserve
import numpy as np
import torch


class Model(litserve.LitAPI):
    """From the crops of one clip, uint8 (T, 224, 224, 3), to its logits."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def setup(self, device: str) -> None:
        self.model = torch.jit.load(self.path).eval()

    def decode_request(self, request) -> torch.Tensor:  # type: ignore[no-untyped-def] # a type would change how LitServe parses it
        frames = np.frombuffer(request["frames"].file.read(), np.uint8).reshape(1, -1, 224, 224, 3)
        return torch.from_numpy(frames.copy())

    def predict(self, frames: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return self.model(frames)[0][0]

    def encode_response(self, logits: torch.Tensor) -> dict[str, list[float]]:
        return {"logits": logits.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Model(sys.argv[1]), accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
