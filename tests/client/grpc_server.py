"""A real gRPC server that implements what the client needs of Triton's protocol, and misbehaves on demand."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from asl_triton.models.card import EMPTY_CARD, ModelCard
from asl_triton.presets import PRESETS, Preset

GLOSSES = ("book", "drink", "hello", "help")


@dataclass
class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves one model, `signs`. `logits` computes its answer to frames (T, 224, 224, 3).

    `faults` are the status and message that the next inferences fail with, one per inference.
    """

    preset: Preset = PRESETS["wlasl"]
    logits: Callable[[np.ndarray], np.ndarray] = lambda frames: np.arange(len(GLOSSES), dtype=np.float32)
    faults: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    ready: bool = True
    version: str = "2.80.0"
    empty: bool = False  # return empty outputs, as Triton does with NumPy 2
    address: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)  # the metadata of each inference
    at_once: int = 0
    most_at_once: int = 0
    card: ModelCard = EMPTY_CARD
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        index = service_pb2.RepositoryIndexResponse.ModelIndex
        return service_pb2.RepositoryIndexResponse(
            models=[index(name="signs", state="READY"), index(name="broken", state="UNAVAILABLE")]
        )

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        if request.name != "signs":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelMetadataResponse(
            name="signs",
            versions=["1", "10", "9"],
            inputs=[tensor(name="FRAMES__0", datatype="UINT8", shape=[-1, -1, 224, 224, 3])],
            outputs=[
                tensor(name="LOGITS__0", datatype="FP32", shape=[-1, len(GLOSSES)]),
                tensor(name="STEP_LOGITS__1", datatype="FP32", shape=[-1, -1, len(GLOSSES)]),
            ],
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:
        config = model_config_pb2.ModelConfig(name="signs", max_batch_size=8)
        config.output.add(name="LOGITS__0", label_filename="labels.txt")
        for key, value in {"asl_triton.preset": self.preset.to_json(), **self.card.to_parameters()}.items():
            config.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    def ModelStatistics(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelStatisticsResponse()
        model = answer.model_stats.add(name="signs", execution_count=2)
        model.inference_stats.success.count = 3
        model.inference_stats.queue.ns = 500_000_000
        model.inference_stats.compute_infer.ns = 1_500_000_000
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        with self._counting:
            self.asked.append({key: value for key, value in context.invocation_metadata() if isinstance(value, str)})
            fault = self.faults.pop(0) if self.faults else None
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if fault:
                context.abort(*fault)
            return self._answer(request)
        finally:
            with self._counting:
                self.at_once -= 1

    def read_input(self, request: Any) -> bytes:
        """Return the bytes of a request's input."""
        return bytes(request.raw_input_contents[0])

    def _answer(self, request: Any) -> Any:
        shape = list(request.inputs[0].shape)
        frames = np.frombuffer(self.read_input(request), np.uint8).reshape(shape)[0]
        logits = np.asarray(self.logits(frames), np.float32)
        answer = service_pb2.ModelInferResponse(model_name="signs", model_version="1", id=request.id)
        for output in request.outputs:
            if output.name not in ("LOGITS__0", "STEP_LOGITS__1"):
                continue
            count = output.parameters["classification"].int64_param
            if count:
                order = np.argsort(-logits)[:count]
                texts = [f"{logits[c]:f}:{c}:{GLOSSES[c]}".encode() for c in order]
                contents = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
                answer.outputs.add(name=output.name, datatype="BYTES", shape=[1, len(texts)])
            elif output.name == "STEP_LOGITS__1":  # the same logits at every step
                steps = max(-(-len(frames) // 8) - 1, 1)
                contents = logits.tobytes() * steps
                answer.outputs.add(name=output.name, datatype="FP32", shape=[1, steps, len(logits)])
            else:
                contents = logits.tobytes()
                answer.outputs.add(name=output.name, datatype="FP32", shape=[1, len(logits)])
            if self.empty:
                answer.outputs[-1].shape[:] = [0]
                contents = b""
            answer.raw_output_contents.append(contents)
        return answer


@contextmanager
def serving(
    triton: Triton | None,
    *,
    workers: int = 16,
    credentials: grpc.ServerCredentials | None = None,
    address: str = "127.0.0.1:0",
    max_bytes: int = -1,
) -> Iterator[Triton]:
    """Serve on this machine within the block, on a free port unless `address` names one.

    With None, the server implements none of Triton's methods.
    """
    served = triton or Triton()
    options = [("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)]
    with ThreadPoolExecutor(workers) as threads:
        server = grpc.server(threads, options=options)
        if triton is not None:
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        # Not `localhost`: it has two addresses, and gRPC's errors would name the one without a listener.
        served.address = f"127.0.0.1:{port}"
        server.start()
        try:
            yield served
        finally:
            server.stop(None).wait()
