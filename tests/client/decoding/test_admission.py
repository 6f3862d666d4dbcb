"""How many videos may be open at once."""

import sys

import pytest

from asl_triton.decoding.admission import max_open_videos


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(("files", "videos"), [(64, 8), (256, 72), (20, 1)])
def test_limit_on_open_files_is_kept(files: int, videos: int) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, before[1]))
    try:
        assert max_open_videos() == videos
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
