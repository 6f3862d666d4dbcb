"""The status of a server: whether it can be reached, and which models it serves.

For pages and other long-lived callers, whose server may be stopped, restarted or replaced.
"""

from dataclasses import dataclass, replace

from asl_triton.errors import AslTritonError
from asl_triton.models.served import ServedModel, list_models, read_model
from asl_triton.transport.base import Transport


@dataclass(frozen=True)
class ServerStatus:
    """What a server answered when it was last asked.

    `version` is None if it cannot be reached. `problem` says why that is, or why it has no usable model. `models` are
    the usable models, sorted by name; `broken` has the name and the error message of each other model of ours.
    """

    address: str
    version: str | None = None
    problem: str | None = None
    models: tuple[ServedModel, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether the server has a usable model."""
        return bool(self.models)

    def model(self, name: str | None) -> ServedModel | None:
        """Return the model of that name, or the first one if `name` is None; None if there is no such model."""
        if name is None:
            return self.models[0] if self.models else None
        return next((served for served in self.models if served.name == name), None)


async def read_status(
    transport: Transport, before: ServerStatus | None = None, only: str | None = None
) -> ServerStatus:
    """Read a server's status. A server that cannot be reached is a status, not an error.

    Models that have not changed since `before` are not read again, because reading labels costs a request. With
    `only`, all other models are left out.
    """
    try:
        version = await transport.server_version()
        found = [d for d in await list_models(transport) if only is None or d.name == only]
    except AslTritonError as exc:
        return ServerStatus(transport.address, problem=str(exc))
    served: list[ServedModel] = []
    broken: list[tuple[str, str]] = []
    for description in found:
        known = before.model(description.name) if before else None
        try:
            described = ServedModel.from_description(description, transport.address)
            is_same = known is not None and replace(known, labels=()) == described
            served.append(known if known and is_same else await read_model(transport, description.name))
        except AslTritonError as exc:
            broken.append((description.name, str(exc)))
    problem = None
    if not served:
        wanted = f"the model {only!r}" if only else "a model"
        problem = (
            broken[0][1]
            if broken
            else (
                f"{transport.address} does not serve {wanted}: add one to its model repository with `asl-triton export`"
            )
        )
    return ServerStatus(transport.address, version, problem, tuple(served), tuple(broken))
