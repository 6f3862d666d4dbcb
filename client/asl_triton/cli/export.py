"""`asl-triton export`: a checkpoint becomes a folder that Triton serves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from asl_triton.cli.options import RepositoryOption
from asl_triton.errors import AslTritonError, LabelsError
from asl_triton.extras import require_extra
from asl_triton.labels import read_labels
from asl_triton.models.checksums import write_checksums
from asl_triton.presets import PRESETS, Preset

if TYPE_CHECKING:
    from asl_triton_export.quantization.report import QuantizationCost

Format = Literal["torchscript", "openvino"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
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
            help="fp32 answers as trained; fp16 and bf16 round, and are several times faster; int8, for OpenVINO, is "
            "faster still and is quantized with your clips (--calibrate). "
            "auto: fp16 with an NVIDIA GPU in this machine, bf16 with a CPU that multiplies it, else fp32."
        ),
    ] = "fp32",
    served_as: Annotated[
        Format,
        typer.Option(
            "--format",
            help="torchscript: for GPUs and CPUs. openvino: for CPUs alone, and about twice as fast on them.",
        ),
    ] = "torchscript",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="For int8, a folder of clips such as will come: up to 32 of them tell how far activations "
            "reach, up to 64 others what int8 cost. With a sub-folder a gloss, the accuracy of both is measured.",
        ),
    ] = None,
    input: Annotated[
        Input,
        typer.Option(help="uint8: the wire carries RGB bytes. fp32: four times that, normalized by the client."),
    ] = "uint8",
    instances: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="How many copies of the network the server runs, on each of its GPUs or on its CPU: they compute at "
            "the same time, each with its own memory. `asl-triton bench` shows what that gains.",
        ),
    ] = 1,
    model_version: Annotated[
        int, typer.Option(min=1, help="Triton's number of this version, which answers and metrics bear.")
    ] = 1,
    repository: RepositoryOption = Path("model_repository"),
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.")] = False,
) -> None:
    """Turn a checkpoint into a model that Triton serves.

    The network is folded for speed, saved as TorchScript or for OpenVINO, loaded again, compared with the network as
    trained, and only then put into the model repository. A network that is not I3D goes in as TorchScript: it is asked
    for the golden clip, alone, in a batch and at another length, and its answers are held against the signature.

        asl-triton export demo
        asl-triton export weights/bsl1k-wlasl2000 --precision auto
        asl-triton export FINAL_nslt_2000.pt --labels wlasl_class_list.txt --name i3d_wlasl2000 --precision fp16
        asl-triton export weights/bsl1k-wlasl2000 --format openvino --precision bf16
        asl-triton export weights/bsl1k-wlasl2000 --format openvino --precision int8 --calibrate clips/
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
        given = {
            "--precision": precision != "fp32",
            "--input": input != "uint8",
            "--format": served_as != "torchscript",
            "--calibrate": calibrate is not None,
        }
        if option := next((option for option, is_given in given.items() if is_given), None):
            raise AslTritonError(f"{option} is for checkpoints: a TorchScript file is served as it is")
        export_torchscript(torchscript, labels, preset, repository, name, instances, model_version, force, console)
        return
    assert checkpoint is not None
    with require_extra("export"):
        from asl_triton_export.checkpoint import load_checkpoint, open_bundle, read_labels_for
        from asl_triton_export.exporter import export_model

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
    with console.status("Folding, writing, comparing with the network as trained"):
        report = export_model(
            loaded,
            glosses,
            read_preset(preset) if preset else bundle.preset or PRESETS["wlasl"],
            repository,
            name,
            precision=precision,
            input_type=input,
            served_as=served_as,
            calibrate=calibrate,
            instances=instances,
            version=model_version,
            force=force,
        )
    write_checksums(repository)
    console.print(
        f"[bold]{name}[/]: {loaded.num_classes} glosses, {report.precision}, in {report.folder}", soft_wrap=True
    )
    console.print(
        f"On the golden clip it differs from the network as trained by {report.max_difference:.2g} at most, where "
        f"logits spread over {report.spread:.3g}; the best class is {'the same' if report.same_best else 'another'}.",
        soft_wrap=True,
    )
    if report.cost is not None:
        for sentence in format_report(report.cost):
            console.print(sentence, soft_wrap=True, highlight=False)
    console.print(f"Next: asl-triton serve --repository {repository}", soft_wrap=True)


def format_report(cost: "QuantizationCost") -> list[str]:
    """What int8 cost, in sentences."""
    where = f"On {cost.clips} others" if cost.apart else "On the same (there are no others)"
    sentences = [
        f"Quantized to int8 with {cost.quantized_with} clips, {cost.frames:,} frames. {where}, the best gloss is the "
        f"float32 network's for {cost.same_best} of {cost.clips}, {cost.top5_in_common:.2g} of its best 5 stay among "
        f"the best 5, and logits differ by {cost.max_difference:.2g} at most, where they spread over {cost.spread:.3g}."
    ]
    if cost.accuracies is not None:
        exact, quantized = cost.accuracies
        sentences.append(
            f"Top-1 {quantized.top1:.1%} in int8, {exact.top1:.1%} in float32; top-5 {quantized.top5:.1%} and "
            f"{exact.top5:.1%}. `asl-triton evaluate` measures it on more."
        )
    return sentences


def export_torchscript(
    path: Path,
    labels: Path | None,
    preset: str | None,
    repository: Path,
    name: str | None,
    instances: int,
    version: int,
    force: bool,
    console: Console,
) -> None:
    """The command, for a network that is TorchScript already."""
    with require_extra("export"):
        from asl_triton_export.exporter import export_script
        from asl_triton_export.formats.custom_script import load_script

    if labels is None or preset is None:
        raise AslTritonError(
            f"{path} says nothing of its glosses and its clips: give --labels with one gloss a line, in class order, "
            f"and --preset with how it was trained ({', '.join(PRESETS)}, or a JSON file)"
        )
    glosses, prepared = read_labels(labels), read_preset(preset)
    name = name or model_name(path)
    with console.status("Asking the network for the golden clip"):
        script = load_script(path, len(glosses), prepared)
        folder = export_script(
            script, glosses, prepared, repository, name, instances=instances, version=version, force=force
        )
    write_checksums(repository)
    console.print(f"[bold]{name}[/]: {len(glosses)} glosses, {script.precision}, in {folder}", soft_wrap=True)
    console.print(f"Next: asl-triton serve --repository {repository}", soft_wrap=True)


def model_name(checkpoint: Path) -> str:
    """A name for the server from a file's: what cannot stand in one becomes '_'."""
    stem = checkpoint.name.split(".")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem).lstrip("-_") or "model"


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
