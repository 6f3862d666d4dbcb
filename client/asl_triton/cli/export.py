"""`asl-triton export`: a checkpoint becomes a folder that Triton serves."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from asl_triton.cli.options import CaveatOption, PurposeOption, RepositoryOption
from asl_triton.cli.terminal import Console
from asl_triton.errors import AslTritonError
from asl_triton.extras import require_extra
from asl_triton.labels import read_labels
from asl_triton.models.card import ModelCard
from asl_triton.models.checksums import write_checksums
from asl_triton.presets import PRESETS, read_preset
from asl_triton.teaching.dictionary import SignDictionary

if TYPE_CHECKING:
    from asl_triton_export.exporter import ExportReport

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
            "Needs --labels and --preset. The file is code of whoever made it: it is checked in a process that can "
            "only compute (on Linux), and runs with all rights of the server when it is served."
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
    purpose: PurposeOption = None,
    caveat: CaveatOption = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default="the bundle's",
            help="The confidence below which the model's answers are unsure, for callers that ask for none. "
            "`asl-triton evaluate --write-threshold` measures it.",
        ),
    ] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Put taught signs into the model, which then answers old and new glosses to every client: a file of "
            "`asl-triton teach`, of this checkpoint in this precision.",
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
    for the golden clip, alone, in a batch and at another length, and its answers are held against the signature. No
    code in a checkpoint is run; a TorchScript file is code, see --torchscript.

        asl-triton export demo
        asl-triton export weights/asl-citizen --precision auto
        asl-triton export FINAL_nslt_2000.pt --labels wlasl_class_list.txt --name i3d_wlasl2000 --precision fp16
        asl-triton export weights/asl-citizen --format openvino --precision bf16
        asl-triton export weights/asl-citizen --format openvino --precision int8 --calibrate clips/
        asl-triton export weights/asl-citizen --dictionary mine.safetensors --name mine
        asl-triton export --torchscript r2plus1d.pt --labels labels.txt --preset preset.json
    """
    if (checkpoint is None) == (torchscript is None):
        raise typer.BadParameter(
            "Missing argument 'CHECKPOINT': name a checkpoint, or another network with --torchscript FILE."
            if checkpoint is None
            else "A checkpoint and --torchscript are two networks: name one."
        )
    with require_extra("export"):
        from asl_triton_export.bundle import open_bundle
        from asl_triton_export.checkpoint import load_checkpoint, read_labels_for
        from asl_triton_export.exporter import choose_name, export_model, export_script
        from asl_triton_export.formats.confinement import can_confine
        from asl_triton_export.formats.custom_script import load_script

    # SIGTERM takes the way of Ctrl-C, which removes the unfinished folder.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    given = {"purpose": purpose, "caveat": caveat, "min_confidence": min_confidence}
    changes = {name: value for name, value in given.items() if value is not None}
    if checkpoint is not None:
        signs = SignDictionary.load(dictionary) if dictionary else None
        bundle = open_bundle(checkpoint)
        name = name or choose_name(checkpoint)
        with console.status("Loading the checkpoint"):
            loaded = load_checkpoint(bundle.weights)
            glosses = read_labels_for(loaded, labels or bundle.labels)
        with console.status("Folding, writing, comparing with the network as trained"):
            report = export_model(
                loaded,
                glosses,
                read_preset(preset) if preset else bundle.preset or PRESETS["wlasl"],
                repository,
                name,
                card=replace(bundle.card, **changes),  # type: ignore[arg-type]
                precision=precision,
                input_type=input,
                served_as=served_as,
                calibrate=calibrate,
                dictionary=signs,
                instances=instances,
                version=model_version,
                force=force,
            )
        lines = format_report(name, len(glosses), report)
        if signs is not None:
            lines.append(f"With {len(signs):,} taught signs, which come before its own glosses.")
    else:
        assert torchscript is not None
        not_for_scripts = {
            "--precision": precision != "fp32",
            "--input": input != "uint8",
            "--format": served_as != "torchscript",
            "--calibrate": calibrate is not None,
            "--dictionary": dictionary is not None,
        }
        if option := next((option for option, is_given in not_for_scripts.items() if is_given), None):
            raise AslTritonError(f"{option} is for checkpoints: a TorchScript file is served as it is")
        if labels is None or preset is None:
            raise AslTritonError(
                f"{torchscript} says nothing of its glosses and its clips: give --labels with one gloss a line, in "
                f"class order, and --preset with how it was trained ({', '.join(PRESETS)}, or a JSON file)"
            )
        glosses, prepared = read_labels(labels), read_preset(preset)
        name = name or choose_name(torchscript)
        asking = console.status("Asking the network for the golden clip")
        with asking, load_script(torchscript, len(glosses), prepared) as script:
            folder = export_script(
                script,
                glosses,
                prepared,
                repository,
                name,
                card=ModelCard(**changes),  # type: ignore[arg-type]
                instances=instances,
                version=model_version,
                force=force,
            )
        where = "in a process that can only compute" if can_confine() else "here with your rights, unconfined"
        console.print(
            f"[yellow]Note:[/] {escape(str(torchscript))} is code of whoever made it. It was checked {where}; served, "
            "it runs with all rights of the server: serve it only if you trust its source.",
            soft_wrap=True,
        )
        lines = [f"[bold]{name}[/]: {len(glosses)} glosses, {script.precision}, in {folder}"]
    write_checksums(repository)
    for line in (*lines, f"Next: asl-triton serve --repository {repository}"):
        console.print(line, soft_wrap=True)


def format_report(name: str, num_classes: int, report: "ExportReport") -> list[str]:
    """What was exported, how it compares with the trained network and, for int8, what it cost: a sentence a line."""
    lines = [
        f"[bold]{name}[/]: {num_classes} glosses, {report.precision}, in {report.folder}",
        f"On the golden clip it differs from the network as trained by {report.max_difference:.2g} at most, where "
        f"logits spread over {report.spread:.3g}; the best class is {'the same' if report.same_best else 'another'}.",
    ]
    cost = report.cost
    if cost is not None:
        where = f"On {cost.clips} others" if cost.apart else "On the same (there are no others)"
        lines.append(
            f"Quantized to int8 with {cost.quantized_with} clips, {cost.frames:,} frames. {where}, the best gloss is "
            f"the float32 network's for {cost.same_best} of {cost.clips}, {cost.top5_in_common:.2g} of its best 5 stay "
            f"among the best 5, and logits differ by {cost.max_difference:.2g} at most, where they spread over "
            f"{cost.spread:.3g}."
        )
    if cost is not None and cost.accuracies is not None:
        exact, quantized = cost.accuracies
        lines.append(
            f"Top-1 {quantized.top1:.1%} in int8, {exact.top1:.1%} in float32; top-5 {quantized.top5:.1%} and "
            f"{exact.top5:.1%}. `asl-triton evaluate` measures it on more."
        )
    return lines
