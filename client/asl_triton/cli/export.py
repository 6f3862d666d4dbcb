"""`asl-triton export`: turn a checkpoint into a model that Triton serves."""

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
            help="A .pt or .safetensors file, a bundle folder (from `asl-triton fetch` or `finetune`), or `demo` for "
            "the demo signer's twenty signs.",
            show_default=False,
        ),
    ] = None,
    torchscript: Annotated[
        Path | None,
        typer.Option(
            help="Export any other network as TorchScript instead of a checkpoint: forward(frames uint8 "
            "(N, T, 224, 224, 3) RGB) -> (logits (N, C), step_logits (N, S, C), features (N, F)), float32, "
            "S = max(ceil(T / 8) - 1, 1). Requires --labels and --preset. The file contains code. It is checked in a "
            "process that can only compute (on Linux), but when served it runs with all of the server's rights."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Glosses in class order: one per line, or WLASL's class list. Required unless the bundle has them."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name on the server. Default: from the checkpoint's name.")
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
            help="Mark answers below this confidence as unsure, unless a caller sets its own threshold. "
            "`asl-triton evaluate --write-threshold` measures it.",
        ),
    ] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add the signs in this file to the model, so that every client gets old and new glosses. The file "
            "comes from `asl-triton teach`, for this checkpoint in this precision.",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="fp32 answers as trained. fp16 and bf16 round and are several times faster. int8, for OpenVINO, is "
            "faster still and is quantized with your clips (--calibrate). auto picks fp16 if this machine has an "
            "NVIDIA GPU, bf16 if its CPU supports it, else fp32."
        ),
    ] = "fp32",
    served_as: Annotated[
        Format,
        typer.Option(
            "--format",
            help="torchscript: for GPUs and CPUs. openvino: for CPUs only, and about twice as fast there.",
        ),
    ] = "torchscript",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="For int8: a folder of typical clips. Up to 32 of them set the range of activations, and up to 64 "
            "others show how much int8 changes the answers. With one subfolder per gloss, the accuracy of both "
            "precisions is measured too.",
        ),
    ] = None,
    input: Annotated[
        Input,
        typer.Option(
            help="uint8: clients send RGB bytes. fp32: clients send normalized values, four times as many bytes."
        ),
    ] = "uint8",
    instances: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="How many copies of the network the server runs on each GPU, or on the CPU. They compute at the same "
            "time, each with its own memory. `asl-triton bench` shows what you gain.",
        ),
    ] = 1,
    model_version: Annotated[
        int, typer.Option(min=1, help="Triton's number for this version, as shown in answers and metrics.")
    ] = 1,
    repository: RepositoryOption = Path("model_repository"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing model of that name.")] = False,
) -> None:
    """Turn a checkpoint into a model that Triton serves.

    The network is folded for speed, saved as TorchScript or for OpenVINO, loaded again and compared with the trained
    network. Only then does it go into the model repository. Export a network other than I3D with --torchscript: it runs
    on the golden clip, alone, in a batch and at another length, and its outputs are checked against the signature. Code
    in a checkpoint never runs. A TorchScript file is itself code; see --torchscript.

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
            else "Give either a checkpoint or --torchscript, not both."
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
        with console.status("Folding, writing and comparing with the trained network"):
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
            lines.append(f"With {len(signs):,} taught signs, which come before the model's own glosses.")
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
            raise AslTritonError(f"{option} is only for checkpoints: a TorchScript file is served as it is")
        if labels is None or preset is None:
            raise AslTritonError(
                f"{torchscript} does not contain its glosses and preset: give --labels (one gloss per line, in class "
                f"order) and --preset (how it was trained: {', '.join(PRESETS)}, or a JSON file)"
            )
        glosses, prepared = read_labels(labels), read_preset(preset)
        name = name or choose_name(torchscript)
        asking = console.status("Running the network on the golden clip")
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
        where = "in a process that can only compute" if can_confine() else "on this machine with all of your rights"
        console.print(
            f"[yellow]Note:[/] {escape(str(torchscript))} contains code. It was checked {where}, but when served it "
            "runs with all of the server's rights. Serve it only if you trust its source.",
            soft_wrap=True,
        )
        lines = [f"[bold]{name}[/]: {len(glosses)} glosses, {script.precision}, in {folder}"]
    write_checksums(repository)
    for line in (*lines, f"Next: asl-triton serve --repository {repository}"):
        console.print(line, soft_wrap=True)


def format_report(name: str, num_classes: int, report: "ExportReport") -> list[str]:
    """Describe what was exported, how it compares with the trained network and, for int8, how the answers changed."""
    lines = [
        f"[bold]{name}[/]: {num_classes} glosses, {report.precision}, in {report.folder}",
        f"On the golden clip, its logits differ from the trained network's by at most {report.max_difference:.2g} in "
        f"a range of {report.spread:.3g}. The best class is {'the same' if report.same_best else 'different'}.",
    ]
    cost = report.cost
    if cost is not None:
        where = f"On {cost.clips} other clips" if cost.apart else "On the same clips (there are no others)"
        lines.append(
            f"Quantized to int8 with {cost.quantized_with} clips, {cost.frames:,} frames. {where}, the best gloss "
            f"matches the float32 network's for {cost.same_best} of {cost.clips}, {cost.top5_in_common:.2g} of its "
            f"best 5 stay among the best 5, and logits differ by at most {cost.max_difference:.2g} in a range of "
            f"{cost.spread:.3g}."
        )
    if cost is not None and cost.accuracies is not None:
        exact, quantized = cost.accuracies
        lines.append(
            f"Top-1 is {quantized.top1:.1%} in int8 and {exact.top1:.1%} in float32; top-5 is {quantized.top5:.1%} and "
            f"{exact.top5:.1%}. To measure more clips, use `asl-triton evaluate`."
        )
    return lines
