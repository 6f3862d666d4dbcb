"""Options that choose where `asl-triton batch` runs: on this machine or on a Ray cluster."""

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
        help="Run on this machine, or spread the clips over a `ray` cluster. For a cluster, DIR and OUTPUT are folders "
        "that all its machines share, or addresses such as s3://bucket/clips.",
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        rich_help_panel=PANEL,
        show_default="start Ray on this machine",
        help="The cluster: `auto` if this machine is part of it, or host:port.",
    ),
]
RayWorkersOption = Annotated[
    int | None,
    typer.Option(
        "--ray-workers",
        rich_help_panel=PANEL,
        min=1,
        show_default="one per CPU of the cluster",
        help="How many actors to run. --in-flight and --decoders apply to each of them.",
    ),
]


def check_engine(
    engine: EngineName, places: Sequence[str], timeline: bool, by_content: bool, local: bool, ray: Sequence[object]
) -> None:
    """Reject options that conflict. `places` are DIR and OUTPUT; `ray` holds the values of the Ray options.

    Raises:
        typer.BadParameter: two options conflict.
    """
    if engine == "local":
        if any(value is not None for value in ray):
            option = "--ray-address" if ray[0] is not None else "--ray-workers"
            raise typer.BadParameter("it requires --engine ray", param_hint=option)
        for place in places:
            if "://" in place:
                raise typer.BadParameter(
                    f"{place} is not a folder on this machine: add --engine ray", param_hint="--engine"
                )
        return
    if timeline:
        raise typer.BadParameter("timelines do not run on Ray: remove --timeline or --engine", param_hint="--engine")
    if by_content:
        raise typer.BadParameter(
            "with --engine ray, changed files are detected by size and time, or by ETag: remove --hash",
            param_hint="--hash",
        )
    if local and any(value is not None for value in ray[:1]):
        raise typer.BadParameter(
            "a cluster's machines cannot reach a Triton on this machine: use --server instead", param_hint="--local"
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
    """Find the clips in a folder. Returns the run that recognizes them on a cluster, and the number of clips.

    Raises:
        AslTritonError: Ray or the package for an address is not installed, or there are no clips.
    """
    with require_extra("ray"):
        from asl_triton.batch.ray.cluster import Cluster
        from asl_triton.batch.ray.runner import RayBatch
        from asl_triton.batch.ray.storage import Folder, find_stored_clips
    source = Folder.parse(folder)
    clips = find_stored_clips(source, glob)
    cluster = Cluster(address, workers)
    return RayBatch(clips, source, Folder.parse(output), formats, ranking, options, cluster=cluster), len(clips)
