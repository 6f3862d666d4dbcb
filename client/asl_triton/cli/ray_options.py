"""Where `asl-triton batch` works: on this machine, or on a Ray cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from asl_triton.batch.runner import BatchOptions
from asl_triton.extras import require_extra
from asl_triton.postprocessing.ranking import Ranking

if TYPE_CHECKING:
    from asl_triton.batch.ray.runner import RayBatch

PANEL = "Clusters"  # of --help
CLIPS_PER_ACTOR = 8  # in flight: enough for its one decoder, and a cluster has many actors

EngineName = Literal["local", "ray"]
EngineOption = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        rich_help_panel=PANEL,
        help="Work on this machine, or spread the clips over a `ray` cluster: DIR and OUTPUT are then folders that all "
        "its machines share, or addresses such as s3://bucket/clips.",
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        rich_help_panel=PANEL,
        show_default="a Ray of its own, on this machine",
        help="The cluster: `auto` on one of its machines, or host:port.",
    ),
]
RayWorkersOption = Annotated[
    int | None,
    typer.Option(
        "--ray-workers",
        rich_help_panel=PANEL,
        min=1,
        show_default="one a CPU of the cluster",
        help="How many actors decode and ask; --in-flight and --decoders are for each of them.",
    ),
]


def check_engine(
    engine: EngineName, places: Sequence[str], timeline: bool, by_content: bool, local: bool, ray: Sequence[object]
) -> None:
    """Refuse options that do not go together. `places` are DIR and OUTPUT, `ray` the values of the options for Ray.

    Raises:
        typer.BadParameter: some do not.
    """
    if engine == "local":
        if any(value is not None for value in ray):
            option = "--ray-address" if ray[0] is not None else "--ray-workers"
            raise typer.BadParameter("only Ray has a cluster: add --engine ray", param_hint=option)
        for place in places:
            if "://" in place:
                raise typer.BadParameter(
                    f"{place} is no folder of this machine: add --engine ray", param_hint="--engine"
                )
        return
    if timeline:
        raise typer.BadParameter("Ray makes no timelines: leave --timeline or --engine out", param_hint="--engine")
    if by_content:
        raise typer.BadParameter(
            "a cluster's files are told by their size and time, or by their ETag: leave it out", param_hint="--hash"
        )
    if local and any(value is not None for value in ray[:1]):
        raise typer.BadParameter(
            "a Triton of this machine is not reached from a cluster: name servers (--server)", param_hint="--local"
        )


def make_ray_batch(
    folder: str,
    output: str,
    glob: str | None,
    formats: Sequence[str],
    ranking: Ranking,
    options: BatchOptions,
    address: str | None,
    workers: int | None,
) -> tuple["RayBatch", int]:
    """Find the clips of a folder: the run that recognizes them on a cluster, and how many there are.

    Raises:
        AslTritonError: Ray, or what an address needs, is not installed; or there is no clip.
    """
    with require_extra("ray"):
        from asl_triton.batch.ray.cluster import Cluster
        from asl_triton.batch.ray.runner import RayBatch
        from asl_triton.batch.ray.storage import Folder, find_stored_clips
    source = Folder.parse(folder)
    clips = find_stored_clips(source, glob)
    cluster = Cluster(address, workers)
    return RayBatch(clips, source, Folder.parse(output), formats, ranking, options, cluster=cluster), len(clips)
