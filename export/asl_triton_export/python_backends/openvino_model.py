"""Serves a model on Triton's Python backend with OpenVINO, on the CPU.

`asl-triton export --format openvino` copies this file into the model folder. It runs inside Triton and needs neither
asl-triton nor PyTorch. Tensors are NumPy arrays, because the Python backend of Triton's wheel fails on NumPy's DLPack.
"""

import json
import os
import sys

import triton_python_backend_utils as pb_utils

# Importing OpenVINO sends telemetry to its maker, unless this module cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]
        path = os.path.join(args["model_repository"], args["model_version"], "model.xml")
        if not os.path.exists(path):
            raise pb_utils.TritonModelException(f"{path} is missing: export the model again")
        try:
            import openvino
        except ModuleNotFoundError as exc:
            message = "OpenVINO is not installed where the server runs: pip install openvino"
            raise pb_utils.TritonModelException(message) from exc
        precision = config["parameters"]["asl_triton.precision"]["string_value"]
        instances = config["instance_group"][0]["count"]
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            # Each instance is a process that would use all cores, and pin its threads to the same first ones.
            "INFERENCE_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // instances),
            "ENABLE_CPU_PINNING": False,
        }
        preset = json.loads(config["parameters"]["asl_triton.preset"]["string_value"])
        self.lengths = preset["min_frames"], preset["max_frames"]
        self.network = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        frames = pb_utils.get_input_tensor_by_name(request, self.input).as_numpy()
        count = frames.shape[1 if frames.dtype == "uint8" else 2]  # (N, T, H, W, C), or classic (N, C, T, H, W)
        least, most = self.lengths
        if not least <= count <= most:
            sentence = f"{self.input} has {count} frames: this model takes {least} to {most}"
            error = pb_utils.TritonError(sentence, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        try:
            answers = self.network.infer({self.input: frames}, share_inputs=True)
        except RuntimeError as exc:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"the network failed: {exc}"))
        asked = [name for name in self.outputs if name in request.requested_output_names()]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, answers[name]) for name in asked])
