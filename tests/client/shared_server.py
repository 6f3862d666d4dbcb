"""A server that accepts requests through system shared memory, as Triton 2.51 does, or refuses them."""

import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tests.client.grpc_server import Triton


@dataclass
class SharingTriton(Triton):
    """Keeps the registered regions in `regions`. If `refusal` is set, registrations fail with it.

    `read_from` lists the region of each request, or an empty string if the data came in the message.
    """

    refusal: tuple[grpc.StatusCode, str] | None = None
    regions: dict[str, mmap.mmap] = field(default_factory=dict)
    num_registered: int = 0
    num_attempts: int = 0
    keys: list[str] = field(default_factory=list)  # the key sent with each registration
    read_from: list[str] = field(default_factory=list)
    in_use: set[str] = field(default_factory=set)
    on_registered: Callable[[], object] = lambda: None  # called before the reply
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        with self._lock:
            self.num_attempts += 1
            self.keys += [value for key, value in context.invocation_metadata() if key.endswith("-asl-triton")]
        if self.refusal:
            context.abort(*self.refusal)
        with Path("/dev/shm", request.key.removeprefix("/")).open("r+b") as file:
            self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        self.num_registered += 1
        self.on_registered()
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        if request.name in self.in_use:
            context.abort(grpc.StatusCode.INTERNAL, f"Cannot unregister '{request.name}', it is currently in use.")
        self.regions.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        answer = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.regions:
            answer.regions[name].name = name
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        name = request.inputs[0].parameters["shared_memory_region"].string_param
        with self._lock:
            self.read_from.append(name)
        if name and name not in self.regions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        return super().ModelInfer(request, context)

    def read_input(self, request: Any) -> bytes:
        parameters = request.inputs[0].parameters
        name = parameters["shared_memory_region"].string_param
        if not name:
            return super().read_input(request)
        offset = parameters["shared_memory_offset"].int64_param
        return self.regions[name][offset : offset + parameters["shared_memory_byte_size"].int64_param]
