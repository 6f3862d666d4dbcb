"""Visitors' files are deleted after a while."""

import os
import stat
import time
from pathlib import Path

from asl_triton_ui.uploads import make_upload_folder, sweep


def test_upload_folder_is_private_and_is_removed_with_the_page() -> None:
    before = os.environ.get("GRADIO_TEMP_DIR")
    with make_upload_folder(3000) as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "hash").mkdir()
        (folder / "hash" / "clip.mp4").touch()
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_old_files_are_swept_whatever_their_modification_time(tmp_path: Path) -> None:
    for name in ("hash/clip.mp4", "broken-off"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))  # as for a copied file
    sweep(tmp_path, keep_s=60)
    assert (tmp_path / "hash" / "clip.mp4").exists() and (tmp_path / "broken-off").exists()
    time.sleep(0.3)
    sweep(tmp_path, keep_s=0.1)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    time.sleep(0.3)
    sweep(tmp_path, keep_s=0.1)  # losing its file changed the folder, so it goes on the next sweep
    assert list(tmp_path.iterdir()) == []


def test_sweeper_runs_in_the_background() -> None:
    with make_upload_folder(keep_s=0.4) as folder:
        (folder / "clip.mp4").touch()
        deadline = time.monotonic() + 30
        while (folder / "clip.mp4").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
