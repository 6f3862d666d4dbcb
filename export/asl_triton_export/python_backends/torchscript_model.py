"""Serves a model on Triton's Python backend, with one TorchScript forward for all requests of equal length.

`asl-triton export` copies this file into the model folder. It runs inside Triton and does not need asl-triton. Tensors
are passed by DLPack, which works with every version of NumPy.
"""

import json
import os
from collections import defaultdict

import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]
        gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device("cuda", int(args["model_instance_device_id"])) if gpu else torch.device("cpu")
        instances = sum(group["count"] for group in config["instance_group"])
        if not gpu and instances > 1:  # each is a process, and their threads would compete for the cores
            torch.set_num_threads(max(torch.get_num_threads() // instances, 1))
        path = os.path.join(args["model_repository"], args["model_version"], "model.pt")
        if not os.path.exists(path):
            raise pb_utils.TritonModelException(f"{path} is missing: export the model again")
        self.model = torch.jit.load(path, map_location=self.device).eval()
        preset = json.loads(config["parameters"]["asl_triton.preset"]["string_value"])
        self.lengths = preset["min_frames"], preset["max_frames"]

    def execute(self, requests):
        frames = [torch.from_dlpack(pb_utils.get_input_tensor_by_name(r, self.input).to_dlpack()) for r in requests]
        time = 1 if frames[0].dtype == torch.uint8 else 2  # (N, T, H, W, C), or classic (N, C, T, H, W)
        alike = defaultdict(list)
        responses = [None] * len(requests)
        least, most = self.lengths
        for index, tensor in enumerate(frames):
            if least <= tensor.shape[time] <= most:
                alike[tensor.shape[1:]].append(index)
            else:
                sentence = f"{self.input} has {tensor.shape[time]} frames: this model takes {least} to {most}"
                error = pb_utils.TritonError(sentence, pb_utils.TritonError.INVALID_ARG)
                responses[index] = pb_utils.InferenceResponse(error=error)
        for indices in alike.values():
            sizes = [frames[i].shape[0] for i in indices]
            try:
                # Optimized execution would specialize and compile for each new length.
                with torch.inference_mode(), torch.jit.optimized_execution(False):
                    batch = frames[indices[0]] if len(indices) == 1 else torch.cat([frames[i] for i in indices])
                    answers = [output.cpu().split(sizes) for output in self.model(batch.to(self.device))]
            except RuntimeError as exc:
                for i in indices:
                    responses[i] = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"the network failed: {exc}"))
                continue
            for row, i in enumerate(indices):
                asked = requests[i].requested_output_names()
                named = [(n, a[row]) for n, a in zip(self.outputs, answers, strict=True) if n in asked]
                tensors = [pb_utils.Tensor.from_dlpack(n, tensor.contiguous()) for n, tensor in named]
                responses[i] = pb_utils.InferenceResponse(output_tensors=tensors)
        return responses
