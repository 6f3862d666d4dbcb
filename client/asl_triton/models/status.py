"""How a server is at this moment: there or away, and which models it serves. For pages and other long-lived
callers, which outlive a server that is stopped, started and swapped."""

from dataclasses import dataclass, replace

from asl_triton.errors import AslTritonError
from asl_triton.models.served import ServedModel, list_models, read_model
from asl_triton.transport.base import Transport


@dataclass(frozen=True)
class ServerStatus:
    """What a server said when it was last asked.

    `version` is None where it is away, and `problem` says why, or why it has no model. `broken` holds the sentence
    for each model that cannot be talked to, by name; the others are in `models`, sorted by name.
    """

    address: str
    version: str | None = None
    problem: str | None = None
    models: tuple[ServedModel, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether there is a model to ask."""
        return bool(self.models)

    def model(self, name: str | None) -> ServedModel | None:
        """The model of that name, the first where the name is None; None where there is none such."""
        if name is None:
            return self.models[0] if self.models else None
        return next((served for served in self.models if served.name == name), None)


async def read_status(
    transport: Transport, before: ServerStatus | None = None, only: str | None = None
) -> ServerStatus:
    """Ask a server how it is. A server that is away is an answer, not an error.

    A model that is as it was in `before` is not read again: its vocabulary costs a request. `only` leaves all
    models but that one out.
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
                f"{transport.address} does not serve {wanted}: write one into its model repository with "
                "`asl-triton export`"
            )
        )
    return ServerStatus(transport.address, version, problem, tuple(served), tuple(broken))
