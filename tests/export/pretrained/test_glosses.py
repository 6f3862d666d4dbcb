import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest

from asl_triton.errors import LabelsError
from asl_triton_export.pretrained.glosses import GlossFormat, read_glosses, read_plain_pickle

WORDS = ["book", "drink", "computer"]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("words", [WORDS, tuple(WORDS), np.array(WORDS), np.array(WORDS, dtype=object)], ids=repr)
def test_words_of_a_pickle_are_the_glosses(words: object, protocol: int, tmp_path: Path) -> None:
    content = {
        "words": words,
        "words_to_id": OrderedDict((word, i) for i, word in enumerate(WORDS)),
        "videos": defaultdict(list, {"T": [np.int64(3)], "box": np.zeros((2, 4)), "seen": {1, 2}}),
    }
    path = tmp_path / "info.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_glosses(path, "info-pickle", 3) == tuple(WORDS)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_of_numpy_1_and_2_are_read(core: str, tmp_path: Path) -> None:
    data = pickle.dumps({"words": np.array(WORDS)}, protocol=3)
    here = b"numpy.core" if b"numpy.core" in data else b"numpy._core"
    path = tmp_path / "info.pkl"
    path.write_bytes(data.replace(here, core.encode()))
    assert read_glosses(path, "info-pickle", 3) == tuple(WORDS)


@pytest.mark.parametrize(
    ("pickled", "named"),
    [
        (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.", "numpy.ndarray.__reduce__"),
        (pickle.dumps(Path("x")), "Path"),
        (b"Psomewhere\n.", "persistent"),
    ],
)
def test_pickle_that_refers_to_other_names_is_refused(pickled: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "info.pkl"
    path.write_bytes(pickled)
    with pytest.raises(LabelsError, match="could run code") as raised:
        read_plain_pickle(path)
    assert named in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(WORDS)[:-4], b"\x80\xff."])
def test_broken_pickle_is_reported(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "info.pkl"
    path.write_bytes(content)
    with pytest.raises(LabelsError, match="damaged, or is not a pickle"):
        read_plain_pickle(path)


def test_first_lines_of_the_class_list_are_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("0\tbook\n1\tdrink\n2\tcomputer\n")
    assert read_glosses(path, "class-list", 2) == ("book", "drink")


def test_glosses_of_asl_citizen_are_sorted_and_stripped(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("Participant ID,Video file,Gloss,ASL-LEX Code\nP1,1.mp4,ZOO ,A\nP2,2.mp4,APPLE,B\nP3,3.mp4,ZOO,A\n")
    assert read_glosses(path, "citizen-csv", 2) == ("APPLE", "ZOO")


@pytest.mark.parametrize("text", ["", "a,b,c\n1,2,3\n", "Participant ID,Video file,Gloss\nP1,1.mp4\n", "\x00\n"])
def test_unrelated_csv_is_reported(text: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(LabelsError, match="ASL Citizen"):
        read_glosses(path, "citizen-csv", 2)


def test_glosses_of_msasl_are_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "MSASL_classes.json"
    path.write_text('["hello", "nice", "teacher"]')
    assert read_glosses(path, "json-list", 3) == ("hello", "nice", "teacher")


@pytest.mark.parametrize("kind", ["info-pickle", "citizen-csv", "json-list"])
def test_missing_file_is_reported(kind: GlossFormat, tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="cannot read"):
        read_glosses(tmp_path / "none", kind, 2)
