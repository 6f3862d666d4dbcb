"""A server that takes requests through system shared memory, as Triton 2.51 does, or refuses to."""

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
    """`regions` are those that are registered now. `refuses` is what it answers to a registration instead.

    `registered` counts; `read_from` names the region of each request, nothing for one that came in its message.
    """

    refuses: tuple[grpc.StatusCode, str] | None = None
    regions: dict[str, mmap.mmap] = field(default_factory=dict)
    registered: int = 0
    tried: int = 0
    keys: list[str] = field(default_factory=list)  # the one that each registration came with
    read_from: list[str] = field(default_factory=list)
    in_use: set[str] = field(default_factory=set)
    on_registered: Callable[[], object] = lambda: None  # before it says so
    _listing: threading.Lock = field(default_factory=threading.Lock)

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        with self._listing:
            self.tried += 1
            self.keys += [value for key, value in context.invocation_metadata() if key.endswith("-asl-triton")]
        if self.refuses:
            context.abort(*self.refuses)
        with Path("/dev/shm", request.key.removeprefix("/")).open("r+b") as file:
            self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        self.registered += 1
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
        with self._listing:
            self.read_from.append(name)
        if name and name not in self.regions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        return super().ModelInfer(request, context)

    def content(self, request: Any) -> bytes:
        parameters = request.inputs[0].parameters
        name = parameters["shared_memory_region"].string_param
        if not name:
            return super().content(request)
        offset = parameters["shared_memory_offset"].int64_param
        return self.regions[name][offset : offset + parameters["shared_memory_byte_size"].int64_param]
