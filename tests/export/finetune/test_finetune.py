"""`asl-triton finetune` on the command line: what it writes, how it resumes, and bad input."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from asl_triton.models.card import ModelCard
from asl_triton.presets import PRESETS
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.finetune import finetune
from asl_triton_export.finetune import module as finetune_module
from asl_triton_export.finetune.recipe import Recipe
from tests.command_line import asl_triton
from tests.live.conftest import write_clip
from tests.networks import GLOSSES, save_checkpoint, save_labels

Capture = pytest.CaptureFixture[str]
BUNDLE = {"weights.safetensors", "labels.txt", "preset.json", "card.json", "metrics.json", "metrics.csv"}
QUICK = ["--from", "small.pt", "--segment-frames", "9", "--precision", "fp32"]
EPOCHS = 4


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, and clips of two glosses that differ in color."""
    folder = tmp_path_factory.mktemp("material")
    save_checkpoint(folder / "small.pt")
    for seed, gloss in enumerate(("home", "help me")):
        for number in range(3):
            write_clip(folder / "signs" / gloss / f"{number}.mp4", 10 + number, seed=10 * seed + number)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use one thread: more threads do not help small networks, and are slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def workdir(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the material in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.pt").symlink_to(material / "small.pt")
    for clip in material.glob("signs/*/*.mp4"):
        copy = tmp_path / clip.relative_to(material)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(clip)
    return tmp_path


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read `metrics.csv` without the seconds."""
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


IN_THREADS = (  # decoder processes need shared memory, a file larger than the size limit of the test
    "import asl_triton.decoding.factory as factory; factory.SAFEST = 'threads'\n"
    "from asl_triton.cli.app import main; main()"
)


def spawn(
    *arguments: object, start: Sequence[str] = ("-m", "asl_triton"), **options: object
) -> "subprocess.Popen[str]":
    command = [sys.executable, *start, "finetune", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("train", ["head", "last"])
def test_finetuning_writes_a_bundle_that_can_be_exported(workdir: Path, capsys: Capture, train: str) -> None:
    done = asl_triton(capsys, "finetune", "signs", *QUICK, "--to", "new", "--train", train, "--epochs", 3)
    assert done.code == 0, done.output
    assert "2 glosses (0 of them known to the checkpoint) from 4 clips in 3 epochs" in done.output
    assert {path.name for path in Path("new").iterdir()} == BUNDLE
    assert Path("new/labels.txt").read_text() == "help me\nhome\n"
    bundle = open_bundle(Path("new"))
    assert bundle.preset == PRESETS["wlasl"]
    assert bundle.card == ModelCard(purpose="2 glosses, fine-tuned on 4 clips of signs")
    table, metrics = read_metrics(Path("new")), json.loads(Path("new/metrics.json").read_text())
    assert [row["epoch"] for row in table] == [1, 2, 3]
    assert metrics["best"]["held_out_loss"] == min(row["held_out_loss"] for row in table)
    assert metrics["train"] == train and metrics["num_held_out_clips"] == 2
    before, after = load_checkpoint(Path("small.pt")).state, load_checkpoint(bundle.weights).state
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"logits"} | ({"Mixed_5b", "Mixed_5c"} if train == "last" else set())
    exported = asl_triton(capsys, "export", "new", "--repository", "models")
    assert exported.code == 0, exported.output


def test_killed_finetuning_resumes_and_ends_with_the_same_result(workdir: Path, capsys: Capture) -> None:
    options = ["signs", *QUICK, "--train", "all", "--epochs", 2, "--accumulate", 2, "--batch-size", 1]
    assert asl_triton(capsys, "finetune", *options, "--to", "whole").code == 0
    with spawn(*options, "--to", "cut") as process:
        while not (workdir / "cut" / "metrics.csv").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert (workdir / "cut" / "training").is_dir()
    done = asl_triton(capsys, "finetune", *options, "--to", "cut")
    assert done.code == 0, done.output
    assert read_metrics(workdir / "cut") == read_metrics(workdir / "whole")
    for name in ("weights.safetensors", "labels.txt", "preset.json", "card.json"):
        assert (workdir / "cut" / name).read_bytes() == (workdir / "whole" / name).read_bytes()


@pytest.mark.parametrize(("given", "purpose", "caveat"), [
    ((), "2 glosses, fine-tuned on 4 clips of signs, from: seven signs",
     "fine-tuned from a model with this warning: not people"),
    (("--purpose", "help and home"), "help and home", "fine-tuned from a model with this warning: not people"),
    (("--caveat", ""), "2 glosses, fine-tuned on 4 clips of signs, from: seven signs", ""),
])  # fmt: skip
def test_card_is_derived_from_the_source_bundle(
    workdir: Path, capsys: Capture, given: tuple[str, ...], purpose: str, caveat: str
) -> None:
    bundle = workdir / "began"
    bundle.mkdir()
    (bundle / "weights.pt").symlink_to((workdir / "small.pt").resolve())
    card = ModelCard(purpose="seven signs", caveat="not people", min_confidence=0.5)
    (bundle / "card.json").write_text(card.to_json())
    options = ["signs", "--from", "began", *QUICK[2:], "--to", "new", "--train", "head", "--epochs", 1]
    done = asl_triton(capsys, "finetune", *options, *given)
    assert done.code == 0, done.output
    assert open_bundle(Path("new")).card == ModelCard(purpose=purpose, caveat=caveat)


def stop_after(workdir: Path, folder: Path, *, epochs: int) -> None:
    """Run a head-only fine-tuning of `EPOCHS` epochs and interrupt it after `epochs`."""

    def interrupt(row: object) -> None:
        if getattr(row, "epoch", 0) == epochs:
            raise KeyboardInterrupt

    recipe = Recipe(train="head", segment_frames=9, precision="fp32", epochs=EPOCHS)
    checkpoint = load_checkpoint(workdir / "small.pt")
    with pytest.raises(KeyboardInterrupt):
        finetune(checkpoint, None, PRESETS["wlasl"], Path("signs"), folder, recipe=recipe, on_epoch=interrupt)


def test_interrupted_head_training_resumes_with_its_saved_features(workdir: Path, capsys: Capture) -> None:
    options = ["signs", *QUICK, "--train", "head", "--epochs", EPOCHS]
    assert asl_triton(capsys, "finetune", *options, "--to", "whole").code == 0
    stop_after(workdir, Path("cut"), epochs=2)
    features = sorted(Path("cut/training/features").iterdir())
    assert [path.name for path in features] == [
        *(f"held-out-{n}.npy" for n in range(2)), *(f"train-{n}.npy" for n in range(4))
    ]  # fmt: skip
    done = asl_triton(capsys, "finetune", *options, "--to", "cut")
    assert "resumed after epoch 2" in done.output
    assert read_metrics(Path("cut")) == read_metrics(Path("whole"))


def test_unfinished_finetuning_with_other_settings_is_left_alone(workdir: Path, capsys: Capture) -> None:
    stop_after(workdir, Path("cut"), epochs=2)
    before = Path("cut/weights.safetensors").read_bytes()
    options = ["signs", *QUICK, "--train", "head", "--epochs", EPOCHS, "--lr", 0.5, "--to", "cut"]
    done = asl_triton(capsys, "finetune", *options)
    assert done.code == 1
    assert "with other settings (learning_rate was 'None')" in done.output
    assert Path("cut/weights.safetensors").read_bytes() == before


def test_training_stops_early_without_improvement(workdir: Path, capsys: Capture) -> None:
    options = ["signs", *QUICK, "--train", "head", "--lr", 0, "--patience", 2]
    done = asl_triton(capsys, "finetune", *options, "--to", "new")
    assert done.code == 0, done.output
    assert len(read_metrics(Path("new"))) == 3


def test_known_glosses_keep_their_classifier(workdir: Path, capsys: Capture) -> None:
    bundle = workdir / "bundle"
    bundle.mkdir()
    (bundle / "weights.pt").symlink_to(workdir / "small.pt")
    save_labels(bundle / "labels.txt")
    options = ["signs", *QUICK[2:], "--from", "bundle", "--to", "new", "--train", "head", "--lr", 0, "--epochs", 1]
    done = asl_triton(capsys, "finetune", *options)
    assert "1 of them known" in done.output, done.output
    old = load_checkpoint(workdir / "small.pt").state["logits.conv3d.weight"]
    new = load_checkpoint(workdir / "new" / "weights.safetensors").state["logits.conv3d.weight"]
    assert torch.equal(new[1], old[4])  # home


def test_nan_loss_stops_training_and_keeps_the_last_good_network(
    workdir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(workdir, Path("cut"), epochs=2)
    before = Path("cut/weights.safetensors").read_bytes()
    compute_loss = finetune_module.compute_loss
    monkeypatch.setattr(finetune_module, "compute_loss", lambda *arguments: compute_loss(*arguments) * float("nan"))
    options = ["signs", *QUICK, "--train", "head", "--epochs", EPOCHS, "--to", "cut"]
    done = asl_triton(capsys, "finetune", *options)
    assert done.code == 1
    assert "the loss became nan in epoch 3, step 1, so training stopped. The best network so far" in done.output
    assert Path("cut/weights.safetensors").read_bytes() == before
    assert asl_triton(capsys, "export", "cut", "--repository", "models").code == 0


def test_infinite_loss_in_the_first_epoch_writes_no_bundle(
    workdir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss = finetune_module.compute_loss
    monkeypatch.setattr(finetune_module, "compute_loss", lambda *arguments: compute_loss(*arguments) * float("inf"))
    done = asl_triton(capsys, "finetune", "signs", *QUICK, "--train", "head", "--to", "new")
    assert done.code == 1
    assert "the loss became inf in epoch 1, step 1" in done.output and "no network was written" in done.output
    assert not Path("new/weights.safetensors").exists()


def test_full_disk_loses_nothing_and_the_same_command_resumes(workdir: Path, capsys: Capture) -> None:
    stop_after(workdir, Path("cut"), epochs=2)
    before = {path: path.read_bytes() for path in Path("cut").rglob("*") if path.is_file()}
    options = ["signs", *QUICK, "--train", "head", "--epochs", EPOCHS, "--to", "cut"]
    limit = len(before[Path("cut/weights.safetensors")]) // 2  # a limit on file size, which fails like a full disk

    def allow_small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with spawn(*options, start=("-c", IN_THREADS), preexec_fn=allow_small_files) as process:
        output = " ".join(process.communicate(timeout=120)[0].split())
    assert process.returncode == 1, output
    assert "cannot write cut: File too large. The best network so far" in output and "Traceback" not in output
    for path in ("weights.safetensors", "labels.txt", "training/last.ckpt"):
        assert Path("cut", path).read_bytes() == before[Path("cut", path)]
    assert not list(Path("cut").rglob("*.part"))
    done = asl_triton(capsys, "finetune", *options)
    assert done.code == 0 and len(read_metrics(Path("cut"))) == EPOCHS, done.output


def leave_one_clip() -> None:
    for name in ("0.mp4", "1.mp4"):
        Path("signs/home", name).unlink()


def add_gloss_without_clips() -> None:
    Path("signs/mother").mkdir()


def break_clips() -> None:
    for path in Path("signs/home").iterdir():
        path.unlink()
        path.write_text("no video")


def write_wrong_labels() -> None:
    Path("bundle").mkdir()
    os.replace("small.pt", "bundle/weights.pt")
    save_labels(Path("bundle/labels.txt"), ("book", "home"))
    Path("small.pt").symlink_to("bundle")


def write_other_vocabulary() -> None:
    Path("words.txt").write_text("cat\ndog\n")


def occupy_target() -> None:
    Path("new").mkdir()
    Path("new", "thesis.txt").touch()


@pytest.mark.parametrize(("fault", "options", "says"), [
    (leave_one_clip, [], "each gloss needs 2 readable clips, one to train on and one to hold out, but 'home' has 1"),
    (add_gloss_without_clips, [], "'mother' has 0"),
    (break_clips, [], "'home' has 0 (home/0.mp4 cannot be read as a video"),
    (write_wrong_labels, [], "has 7 classes, but small.pt/labels.txt has 2 glosses"),
    (write_other_vocabulary, ["--labels", "words.txt"], "from another vocabulary"),
    (occupy_target, [], "new already exists and is not an interrupted fine-tuning run"),
    (None, ["--accelerator", "abacus"], "cannot train on accelerator 'abacus'"),
])  # fmt: skip
def test_bad_input_is_reported_and_nothing_is_written(
    workdir: Path, capsys: Capture, fault: object, options: list[str], says: str
) -> None:
    if callable(fault):
        fault()
    done = asl_triton(capsys, "finetune", "signs", *QUICK, "--to", "new", "--train", "head", *options)
    assert done.code == 1
    assert says in done.output
    assert not list(Path().glob("new/weights.*"))


def test_broken_clips_are_named_and_the_rest_is_used(workdir: Path, capsys: Capture) -> None:
    Path("signs/home/broken.mp4").write_text("no video")
    done = asl_triton(capsys, "finetune", "signs", *QUICK, "--to", "new", "--train", "head", "--epochs", 1)
    assert done.code == 3
    assert "1 unreadable clip was left out: home/broken.mp4 cannot be read as a video" in done.output
    assert {path.name for path in Path("new").iterdir()} == BUNDLE


def test_split_file_defines_the_subsets_and_missing_videos_are_counted(workdir: Path, capsys: Capture) -> None:
    Path("videos").mkdir()
    split = {}
    for number, clip in enumerate(sorted(workdir.glob("signs/*/*.mp4"))):
        os.replace(clip, f"videos/{number:05}.mp4")
        subset = ("train", "train", "val")[number % 3]
        split[f"{number:05}"] = {"subset": subset, "action": [number // 3, 1, -1]}
    split |= {f"{number:05}": {"subset": "train", "action": [0, 1, -1]} for number in range(90, 93)}
    Path("split.json").write_text(json.dumps(split))
    Path("two.txt").write_text("0\thelp me\n1\thome\n")
    options = [*QUICK, "--labels", "two.txt", "--to", "new", "--train", "head", "--epochs", 1]
    done = asl_triton(capsys, "finetune", "split.json", *options)
    assert done.code == 0, done.output
    assert "3 missing clips were left out: 00090 00091 00092" in done.output
    assert "from 4 clips" in done.output and "on 2 held-out clips" in done.output


@pytest.fixture
def bundle(workdir: Path) -> Path:
    """The checkpoint with labels. It knows `home`, one of the two glosses, and six others."""
    folder = workdir / "bundle"
    folder.mkdir()
    (folder / "weights.pt").symlink_to(workdir / "small.pt")
    save_labels(folder / "labels.txt")
    return folder


FROM_BUNDLE = ["--from", "bundle", *QUICK[2:], "--to", "new", "--train", "head"]


def test_glosses_without_clips_are_refused(bundle: Path, capsys: Capture) -> None:
    save_labels(Path("words.txt"), (*GLOSSES, "help me"))
    done = asl_triton(capsys, "finetune", "signs", *FROM_BUNDLE, "--labels", "words.txt")
    assert done.code == 1
    assert "6 of 8 glosses have no clip to learn from: book, drink, hello, help, mother, ..." in done.output
    assert "--drop-empty, or keep what the checkpoint knows with --keep-known" in done.output
    save_labels(Path("words.txt"), ("home", "help me", "unheard of"))
    done = asl_triton(capsys, "finetune", "signs", *FROM_BUNDLE, "--labels", "words.txt")
    assert "1 of 3 glosses has no clip to learn from: unheard of" in done.output and "--keep-known" not in done.output
    assert not Path("new").exists()


def test_glosses_with_only_unreadable_clips_are_refused_or_dropped(workdir: Path, capsys: Capture) -> None:
    Path("videos").mkdir()
    split = {}
    for number, clip in enumerate(sorted(workdir.glob("signs/*/*.mp4"))):
        os.replace(clip, f"videos/{number:05}.mp4")
        split[f"{number:05}"] = {"subset": "train", "action": [number // 3, 1, -1]}
    Path("videos/00009.mp4").write_text("no video")
    split["00009"] = {"subset": "train", "action": [2, 1, -1]}
    Path("split.json").write_text(json.dumps(split))
    Path("words.txt").write_text("help me\nhome\nbroken\n")
    options = ["split.json", *QUICK, "--labels", "words.txt", "--to", "new", "--train", "head", "--epochs", 1]
    done = asl_triton(capsys, "finetune", *options)
    assert done.code == 1 and "1 of 3 glosses has no clip to learn from: broken" in done.output
    done = asl_triton(capsys, "finetune", *options, "--drop-empty")
    assert done.code == 3, done.output
    assert Path("new/labels.txt").read_text() == "help me\nhome\n"


def test_kept_glosses_keep_their_rows_and_new_ones_are_added(bundle: Path, capsys: Capture) -> None:
    done = asl_triton(capsys, "finetune", "signs", *FROM_BUNDLE, "--keep-known")
    assert done.code == 0, done.output
    assert "7 known glosses keep their rows of the classifier, and 1 new one is imprinted" in done.output
    assert "8 glosses (7 of them known to the checkpoint)" in done.output
    assert Path("new/labels.txt").read_text().splitlines() == [*GLOSSES, "help me"]
    old, new = (load_checkpoint(path).state for path in (Path("small.pt"), Path("new/weights.safetensors")))
    for name in old:
        assert torch.equal(old[name], new[name][:7] if name.startswith("logits.") else new[name])
    assert json.loads(Path("new/metrics.json").read_text())["num_kept_glosses"] == 7
    assert asl_triton(capsys, "export", "new", "--repository", "models").code == 0


@pytest.mark.parametrize(("options", "says"), [
    (["--train", "last"], "--keep-known needs --train head"),
    (["--from", "small.pt"], "small.pt does not say which glosses it knows"),
    (["--labels", "home.txt"], "the checkpoint knows all these glosses"),
    (["--labels", "new.txt"], "the checkpoint knows none of these glosses"),
])  # fmt: skip
def test_keep_known_with_nothing_to_keep_is_reported(
    bundle: Path, capsys: Capture, options: list[str], says: str
) -> None:
    Path("home.txt").write_text("home\nbook\n")
    Path("new.txt").write_text("help me\n")
    done = asl_triton(capsys, "finetune", "signs", *FROM_BUNDLE, "--keep-known", *options)
    assert done.code == 1 and says in done.output
    assert not list(Path().glob("new/weights.*"))


def test_summary_lists_glosses_and_confidence_intervals(bundle: Path, capsys: Capture) -> None:
    done = asl_triton(capsys, "finetune", "signs", *FROM_BUNDLE, "--epochs", 1)
    assert done.code == 0, done.output
    assert "the new model will know only 2 glosses, the sub-folders of the data: help me, home" in done.output
    assert "It will not know 6 others that the checkpoint knows (book, drink, hello, help, mother, ...)" in done.output
    assert "at least 12 clips of each gloss by at least 5 signers; 'help me' has 3, 'home' has 3" in done.output
    assert "from 3 clips each without training, use asl-triton teach" in done.output
    assert done.output.count("% (95 % interval ") >= 3  # for the epoch, top-1 and top-5


def test_copies_of_one_clip_are_not_enough(workdir: Path, capsys: Capture) -> None:
    leave_one_clip()
    Path("signs/home/copy.mp4").write_bytes(Path("signs/home/2.mp4").read_bytes())
    done = asl_triton(capsys, "finetune", "signs", *QUICK, "--to", "new", "--train", "head")
    assert done.code == 1 and "'home' has 1 and 1 copies of it" in done.output


def test_copies_are_named(workdir: Path, capsys: Capture) -> None:
    Path("signs/home/copy.mp4").write_bytes(Path("signs/home/2.mp4").read_bytes())
    done = asl_triton(capsys, "finetune", "signs", *QUICK, "--to", "new", "--train", "head", "--epochs", 1)
    assert done.code == 0, done.output
    assert (
        "1 clip is a copy of another and will stay on the same side of the split: home/copy.mp4 of home/2.mp4"
        in done.output
    )
