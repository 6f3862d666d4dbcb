"""Signs taught with a few examples: how accurate they are, what is rejected, and what many signs cost.

    python -m tests.benchmarks.teaching --work teaching
    python -m tests.benchmarks.teaching --work teaching --embeddings
    python -m tests.benchmarks.teaching --work teaching --together
    python -m tests.benchmarks.teaching --many

Ten signs that the demo checkpoint does not know, by signers that it has never seen, are rendered and embedded through a
real Triton: 12 examples and 20 other clips of each, and 10 clips of each of its own 20 signs, which are not taught. The
work folder keeps clips and answers. Examples are drawn at random 30 times, and the intervals cover the draws and the
clips (bootstrap). `--embeddings` compares different kinds of embeddings. `--together` lets the model's own glosses
compete, as with `--with-vocabulary` and in a model exported with the dictionary. `--many` needs no clips: it makes up
embeddings for 2,000 signs, five examples each.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from asl_triton.models.served import FEATURES, FRAMES, STEP_LOGITS, read_model
from asl_triton.presets import PRESETS
from asl_triton.teaching.classifier import SignClassifier
from asl_triton.teaching.dictionary import SignDictionary, TaughtModel
from asl_triton.teaching.embedding import embed_clip, scale_to_unit
from asl_triton.teaching.transport import combine_logits
from asl_triton.transport.factory import make_transport
from asl_triton.video.preprocessing import crop_frames
from asl_triton.video.reader import open_video
from asl_triton_demo.signs import SIGNS
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import load_checkpoint, read_labels_for
from asl_triton_export.exporter import export_model
from tests.benchmarks.new_signs import FIRST_HELD_OUT_SEED, FIRST_SEED, NEW_SIGNS, render_glosses
from tests.paths import DEMO_BUNDLE

EXAMPLES, HELD_OUT, UNTAUGHT = 12, 20, 10  # clips per sign
FIRST_UNTAUGHT_SEED = 7_000_000
DRAWS = 30
Array = npt.NDArray[Any]
Answers = dict[str, tuple[Array, Array]]  # features and step logits by "kind/gloss/seed"


def collect_answers(work: Path) -> Answers:
    """Return the demo checkpoint's answers to all clips. Clips are rendered only if the folder has no answers yet."""
    cache = work / "answers.npz"
    if not cache.exists():
        render_glosses(work / "taught", NEW_SIGNS, range(FIRST_SEED, FIRST_SEED + EXAMPLES))
        render_glosses(work / "asked", NEW_SIGNS, range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + HELD_OUT))
        render_glosses(work / "others", SIGNS, range(FIRST_UNTAUGHT_SEED, FIRST_UNTAUGHT_SEED + UNTAUGHT))
        bundle = open_bundle(DEMO_BUNDLE)
        checkpoint = load_checkpoint(bundle.weights)
        export_model(
            checkpoint,
            read_labels_for(checkpoint, bundle.labels),
            PRESETS["wlasl"],
            work / "models",
            "demo",
            precision="fp32",
        )
        clips = [clip for kind in ("taught", "asked", "others") for clip in sorted((work / kind).rglob("*.mp4"))]
        with LocalTriton(work / "models") as triton:
            answers = asyncio.run(infer_all(triton.address, clips))
        arrays = {}
        for clip, (features, steps) in zip(clips, answers, strict=True):
            name = clip.relative_to(work).with_suffix("").as_posix()
            arrays[f"{name}:features"], arrays[f"{name}:steps"] = features, steps
        np.savez(cache, **arrays)
    with np.load(cache) as arrays:
        names = sorted({key.rpartition(":")[0] for key in arrays})
        return {name: (arrays[f"{name}:features"], arrays[f"{name}:steps"]) for name in names}


async def infer_all(address: str, clips: Sequence[Path]) -> list[tuple[Array, Array]]:
    """Infer the features (F,) and step logits (S, C) of clips, cropped as by the client."""
    transport = make_transport(address)
    served = await read_model(transport)
    answers = []
    for number, clip in enumerate(clips, start=1):
        with open_video(clip) as video:
            frames = np.stack([crop.image for crop in crop_frames(video, served.preset, 10**6)])
        outputs = await transport.infer(served.name, {FRAMES: served.make_input(frames)}, [FEATURES, STEP_LOGITS])
        answers.append((outputs[FEATURES][0], outputs[STEP_LOGITS][0]))
        if number % 50 == 0:
            print(f"{number} of {len(clips)} clips", flush=True)
    await transport.close()
    return answers


@dataclass(frozen=True)
class Clips:
    """Vectors of the examples, of other clips of the taught signs (`truth` has their signs), and of untaught signs."""

    examples: list[Array]  # (12, D) for each sign
    held_out: Array
    truth: Array
    untaught: Array


def list_glosses(answers: Answers) -> list[str]:
    """List the taught signs."""
    return sorted({name.split("/")[1] for name in answers if name.startswith("taught/")})


def embed_all(answers: Answers, embed: Callable[[Array, Array], Array]) -> Clips:
    """Embed the model's answers."""
    glosses = list_glosses(answers)

    def pick(prefix: str) -> Array:
        return np.stack([embed(*answers[name]) for name in answers if name.startswith(prefix)])

    held_out = [pick(f"asked/{gloss}/") for gloss in glosses]
    truth = np.repeat(np.arange(len(glosses)), [len(clips) for clips in held_out])
    return Clips([pick(f"taught/{gloss}/") for gloss in glosses], np.concatenate(held_out), truth, pick("others/"))


def measure(clips: Clips, count: int) -> dict[str, Array]:
    """Teach `count` examples of each sign, drawn at random several times. Returns the figures of each draw."""
    figures: dict[str, list[float]] = {}
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        drawn = [examples[rng.permutation(len(examples))[:count]] for examples in clips.examples]
        classifier = SignClassifier.fit(np.concatenate(drawn), np.repeat(np.arange(len(drawn)), count))
        logits, untaught = classifier.logits(clips.held_out), classifier.logits(clips.untaught).max(axis=1)
        best = logits.max(axis=1)
        ranks = (logits > logits[np.arange(len(logits)), clips.truth][:, None]).sum(axis=1)
        sample = rng.integers(len(ranks), size=len(ranks))  # bootstrap over clips, for the intervals
        for name, value in (
            ("top1", (ranks == 0).mean()),
            ("top1 resampled", (ranks[sample] == 0).mean()),
            ("top5", (ranks < 5).mean()),
            ("unsure", (best < 0).mean()),
            ("untaught unsure", (untaught < 0).mean()),
            ("rejected at 5 %", (untaught < np.quantile(best, 0.05)).mean()),
            ("area", (best[:, None] > untaught[None]).mean()),
        ):
            figures.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in figures.items()}


def print_accuracy(answers: Answers) -> None:
    """Print accuracy and rejection by number of examples."""
    clips = embed_all(answers, lambda features, steps: embed_clip(features, steps).vector)
    table = Table("examples", "top-1", "95 %", "top-5", "taught unsure", "untaught unsure", "rejected at 5 %", "area")
    for count in (1, 2, 3, 5, 12):
        figures = measure(clips, count)
        low, high = np.quantile(figures["top1 resampled"], [0.025, 0.975])
        means = {name: f"{values.mean():.1%}" for name, values in figures.items()}
        table.add_row(
            str(count),
            means["top1"],
            f"{low:.1%} to {high:.1%}",
            means["top5"],
            means["unsure"],
            means["untaught unsure"],
            means["rejected at 5 %"],
            f"{figures['area'].mean():.3f}",
        )
    Console().print(table)


def compare_embeddings(answers: Answers) -> None:
    """Print top-1 and the share rejected at 5 %, by kind of embedding."""

    def join_to_unit(*parts: Array) -> Array:
        return scale_to_unit(np.concatenate([scale_to_unit(part) for part in parts]))

    def average_thirds(steps: Array) -> Array:
        return np.concatenate([scale_to_unit(part.mean(axis=0)) for part in np.array_split(steps, 3)])

    kinds: dict[str, Callable[[Array, Array], Array]] = {
        "features": lambda features, steps: join_to_unit(features),
        "mean step logits": lambda features, steps: join_to_unit(steps.mean(axis=0)),
        "maximum": lambda features, steps: join_to_unit(steps.max(axis=0)),
        "mean, maximum, deviation": lambda features, steps: join_to_unit(
            steps.mean(axis=0), steps.max(axis=0), steps.std(axis=0)
        ),
        "thirds, maximum, deviation": lambda features, steps: join_to_unit(
            average_thirds(steps), steps.max(axis=0), steps.std(axis=0)
        ),
        "features, maximum": lambda features, steps: join_to_unit(features, steps.max(axis=0)),
        "features, thirds, maximum, deviation": lambda features, steps: embed_clip(features, steps).vector,
    }
    table = Table("embedding", *(f"{count} examples" for count in (1, 3, 5, 12)))
    for name, embed in kinds.items():
        clips = embed_all(answers, embed)
        figures = [measure(clips, count) for count in (1, 3, 5, 12)]
        table.add_row(name, *(f"{f['top1'].mean():.1%}, {f['rejected at 5 %'].mean():.0%}" for f in figures))
    Console().print(table)


def print_competition(answers: Answers) -> None:
    """Print top-1 of taught signs and of the model's own signs, alone and together."""
    bundle = open_bundle(DEMO_BUNDLE)
    own_labels = read_labels_for(load_checkpoint(bundle.weights), bundle.labels)
    taught = {gloss: [n for n in answers if n.startswith(f"taught/{gloss}/")] for gloss in list_glosses(answers)}
    tested = [name for name in answers if name.startswith(("asked/", "others/"))]
    truth = [name.split("/")[1] for name in tested]
    table = Table("examples", "taught, alone", "taught, together", "own, alone", "own, together")
    for count in (1, 3, 5, 12):
        figures = []
        for draw in range(DRAWS // 3):
            rng = np.random.default_rng(draw)
            dictionary = SignDictionary(TaughtModel("0" * 64, "fp32", PRESETS["wlasl"].to_json()))
            for gloss, names in taught.items():
                for place in rng.permutation(len(names))[:count]:
                    dictionary.add(gloss, embed_clip(*answers[names[place]]))
            labels = tuple(dict.fromkeys((*dictionary.glosses, *own_labels)))
            correct = []
            for name, gloss in zip(tested, truth, strict=True):
                embedding, own_logits = embed_clip(*answers[name]), answers[name][1].mean(axis=0)
                alone = dictionary.glosses if name.startswith("asked/") else own_labels
                own = (
                    dictionary.classifier().logits(embedding.vector[None]) if alone != own_labels else own_logits[None]
                )
                together = combine_logits(dictionary, [embedding], own_logits[None], own_labels)
                correct.append((alone[int(own.argmax())] == gloss, labels[int(together.argmax())] == gloss))
            is_taught = np.array([name.startswith("asked/") for name in tested])
            shares = np.array(correct, float)
            figures.append([*shares[is_taught].mean(axis=0), *shares[~is_taught].mean(axis=0)])
        table.add_row(str(count), *(f"{share:.1%}" for share in np.mean(figures, axis=0)))
    Console().print(table)


def measure_many(num_signs: int = 2_000, num_examples: int = 5, num_classes: int = 2_000) -> None:
    """Measure what a large dictionary costs."""
    rng = np.random.default_rng(0)
    dictionary = SignDictionary(TaughtModel("0" * 64, "fp32", PRESETS["wlasl"].to_json()))
    typical = [(rng.random(1024), rng.normal(size=(7, num_classes))) for _ in range(num_signs)]
    embeddings = [
        embed_clip(
            (features + 0.3 * rng.random(1024)).astype(np.float32),
            (steps + 0.3 * rng.normal(size=steps.shape)).astype(np.float32),
        )
        for features, steps in typical
        for _ in range(num_examples)
    ]
    began_s = time.perf_counter()
    for number, embedding in enumerate(embeddings):
        dictionary.add(f"sign {number // num_examples}", embedding)
    added_s = time.perf_counter()
    classifier = dictionary.classifier()
    learned_s = time.perf_counter()
    for embedding in embeddings[:100]:
        classifier.logits(embedding.vector[None])
    compared_s = time.perf_counter()
    features, steps = typical[0]
    for _ in range(100):
        embed_clip(features.astype(np.float32), steps.astype(np.float32))
    embedded_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signs.safetensors"
        dictionary.save(path)
        megabytes = path.stat().st_size / 1e6
    print(
        f"{num_signs:,} signs with {num_examples} examples each, a model of {num_classes:,} glosses: added in "
        f"{added_s - began_s:.1f} s, learned in {learned_s - added_s:.1f} s; {megabytes:.0f} MB; "
        f"{10 * (compared_s - learned_s):.2f} ms to compare and {10 * (embedded_s - compared_s):.2f} ms to embed a clip"
    )


def main() -> None:
    """Measure what the options select."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="folder for all files; temporary by default")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--many", action="store_true")
    arguments = parser.parse_args()
    if arguments.many:
        measure_many()
        return
    with tempfile.TemporaryDirectory() as scratch:
        answers = collect_answers(arguments.work or Path(scratch))
        if arguments.embeddings:
            compare_embeddings(answers)
        elif arguments.together:
            print_competition(answers)
        else:
            print_accuracy(answers)


if __name__ == "__main__":
    main()
