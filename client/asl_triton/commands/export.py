"""`asl-triton export`: a checkpoint becomes a folder that Triton serves."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from asl_triton.commands.extras import extra
from asl_triton.commands.options import RepositoryOption
from asl_triton.errors import AslTritonError, LabelsError
from asl_triton.labels import read_labels
from asl_triton.presets import PRESETS, Preset

Precision = Literal["auto", "fp32", "fp16", "bf16"]
Input = Literal["uint8", "fp32"]


def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="A .pt or .safetensors file, a bundle folder (as `asl-triton fetch` and `finetune` leave it), "
            "or `demo`: the twenty signs of the demo signer.",
            show_default=False,
        ),
    ] = None,
    torchscript: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a checkpoint, any other network as TorchScript: forward(frames uint8 (N, T, 224, 224, 3) "
            "RGB) -> (logits (N, C), step_logits (N, S, C), features (N, F)), float32, S = max(ceil(T / 8) - 1, 1). "
            "Needs --labels and --preset."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Glosses in class order: one a line, or WLASL's class list. Needed unless a bundle has them."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name on the server. Taken from the checkpoint's if not given.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"How the checkpoint was trained: {', '.join(PRESETS)}, or a JSON file. "
            "Default: the bundle's, else wlasl."
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="fp32 answers as trained; fp16 and bf16 round, and are several times faster. "
            "auto: fp16 with an NVIDIA GPU in this machine, bf16 with a CPU that multiplies it, else fp32."
        ),
    ] = "fp32",
    input: Annotated[
        Input,
        typer.Option(help="uint8: the wire carries RGB bytes. fp32: four times that, normalised by the client."),
    ] = "uint8",
    repository: RepositoryOption = Path("model_repository"),
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.")] = False,
) -> None:
    """Turn a checkpoint into a model that Triton serves.

    The network is folded for speed, saved as TorchScript, loaded again, compared with the network as trained, and
    only then put into the model repository. A network that is not I3D goes in as TorchScript: it is asked for the
    golden clip, alone, in a batch and at another length, and its answers are held against the signature.

        asl-triton export demo
        asl-triton export weights/bsl1k-wlasl2000 --precision auto
        asl-triton export FINAL_nslt_2000.pt --labels wlasl_class_list.txt --name i3d_wlasl2000 --precision fp16
        asl-triton export --torchscript r2plus1d.pt --labels labels.txt --preset preset.json
    """
    if (checkpoint is None) == (torchscript is None):
        raise typer.BadParameter(
            "Missing argument 'CHECKPOINT': name a checkpoint, or another network with --torchscript FILE."
            if checkpoint is None
            else "A checkpoint and --torchscript are two networks: name one."
        )
    console = Console()
    if torchscript is not None:
        if precision != "fp32" or input != "uint8":
            option = "--precision" if precision != "fp32" else "--input"
            raise AslTritonError(f"{option} is for checkpoints: a TorchScript file is served as it is")
        export_torchscript(torchscript, labels, preset, repository, name, force, console)
        return
    assert checkpoint is not None
    with extra("export"):
        from asl_triton_export.checkpoint import load_checkpoint, open_bundle, read_labels_for
        from asl_triton_export.repository import export_model

    bundle = open_bundle(checkpoint)
    labels = labels or bundle.labels
    if labels is None:
        raise LabelsError(
            f"which glosses does {checkpoint} know? Give --labels with one gloss a line, in class order "
            "(WLASL's wlasl_class_list.txt will do)"
        )
    with console.status("Loading the checkpoint"):
        loaded = load_checkpoint(bundle.weights)
        glosses = read_labels_for(loaded, labels)
    name = name or model_name(checkpoint)
    with console.status("Folding, scripting, comparing with the network as trained"):
        report = export_model(
            loaded,
            glosses,
            read_preset(preset) if preset else bundle.preset or PRESETS["wlasl"],
            repository,
            name,
            precision=precision,
            input_type=input,
            force=force,
        )
    console.print(
        f"[bold]{name}[/]: {loaded.num_classes} glosses, {report.precision}, in {report.folder}", soft_wrap=True
    )
    console.print(
        f"On the golden clip it differs from the network as trained by {report.max_difference:.2g} at most, where "
        f"logits spread over {report.spread:.3g}; the best class is {'the same' if report.same_best else 'another'}.",
        soft_wrap=True,
    )
    console.print(f"Next: asl-triton serve --repository {repository}", soft_wrap=True)


def export_torchscript(
    path: Path,
    labels: Path | None,
    preset: str | None,
    repository: Path,
    name: str | None,
    force: bool,
    console: Console,
) -> None:
    """The command, for a network that is TorchScript already."""
    with extra("export"):
        from asl_triton_export.repository import export_script
        from asl_triton_export.torchscript import load_script

    if labels is None or preset is None:
        raise AslTritonError(
            f"{path} says nothing of its glosses and its clips: give --labels with one gloss a line, in class order, "
            f"and --preset with how it was trained ({', '.join(PRESETS)}, or a JSON file)"
        )
    glosses, prepared = read_labels(labels), read_preset(preset)
    name = name or model_name(path)
    with console.status("Asking the network for the golden clip"):
        script = load_script(path, len(glosses), prepared)
        folder = export_script(script, glosses, prepared, repository, name, force=force)
    console.print(f"[bold]{name}[/]: {len(glosses)} glosses, {script.precision}, in {folder}", soft_wrap=True)
    console.print(f"Next: asl-triton serve --repository {repository}", soft_wrap=True)


def model_name(checkpoint: Path) -> str:
    """A name for the server from a file's: what cannot stand in one becomes '_'."""
    stem = checkpoint.name.split(".")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem).lstrip("-_") or "recogniser"


def read_preset(name_or_path: str) -> Preset:
    """One of the presets that ship, or one from a JSON file."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    try:
        return Preset.from_json(Path(name_or_path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise AslTritonError(
            f"{name_or_path!r} is neither a preset ({', '.join(PRESETS)}) nor a readable JSON file of one"
        ) from exc
