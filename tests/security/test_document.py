"""SECURITY.md states the limits that the code sets."""

from pathlib import Path

import pytest

from asl_triton.decoding.factory import DEFAULT_DECODE_TIMEOUT_S, MAX_MEMORY_BYTES, VIDEOS_PER_PROCESS
from asl_triton.evaluation.dataset import MAX_SPLIT_BYTES
from asl_triton.labels import MAX_LABELS_BYTES
from asl_triton.presets import MAX_PRESET_BYTES, PRESETS
from asl_triton.triton_backend.service import ServiceLimits
from asl_triton_export.checkpoint import MAX_FILE_BYTES, MAX_INDEX_BYTES
from asl_triton_export.formats.custom_script import CHECK_TIMEOUT_S
from asl_triton_export.triton_config import MAX_QUEUE_SIZE, QUEUE_TIMEOUT_US
from asl_triton_ui import security
from asl_triton_ui.event_limits import MAX_EVENTS, MAX_GUIDE_CHARS, MAX_TEXT_CHARS, MAX_UNREAD
from asl_triton_ui.launching import SPARE_EVENTS, SPARE_STREAMS
from asl_triton_ui.options import MB, PageOptions
from asl_triton_ui.state.taught_signs import MAX_BYTES, MAX_EXAMPLES, MAX_WHO_BYTES
from asl_triton_ui.state.taught_signs import MAX_FILE_BYTES as MAX_SIGNS_BYTES
from asl_triton_ui.upload_components import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS

DOCUMENT = Path(__file__).parents[2] / "SECURITY.md"
PAGE, SERVICE = PageOptions(), ServiceLimits()
PLACES = PAGE.at_once + PAGE.queue_limit + PAGE.max_live + SPARE_STREAMS + SPARE_EVENTS
GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    "row",
    [
        f"an upload | {PAGE.max_upload_mb} MB |",
        f"a video's length | {PAGE.max_minutes:g} minutes |",
        f"clips at once | {PAGE.max_clips} |",
        f"{PAGE.max_visitor_bytes // MB:,} MB: five of the largest | `--max-visitor-mb`",
        f"{PAGE.max_folder_bytes // MB:,} MB: fifteen of the largest | `--max-folder-mb`",
        f"{PAGE.min_free_mb} MB | `--min-free-mb`",
        f"{PAGE.keep_minutes:g} minutes, and at most 5 more",
        f"the body of a login | {security.MAX_LOGIN_BYTES // 1000} kB",
        f"the body of any other request | {security.MAX_BODY_BYTES // MB} MB",
        f"JSON values in a body | {security.MAX_BODY_VALUES:,} |",
        f"characters in a text of an event | {MAX_TEXT_CHARS:,} |",
        f"characters in a small picture sent before a recording | {MAX_GUIDE_CHARS:,} |",
        f"whose answers were not fetched | {MAX_EVENTS} |",
        f"parts of one answer | {MAX_UNREAD} |",
        f"connections at once | {security.MAX_CONNECTIONS:,} |",
        f"connections at once from one address | {security.MAX_ADDRESS_CONNECTIONS} |",
        f"taught signs of one open page | {MAX_EXAMPLES} examples",
        f"a file of signs to load | {MAX_SIGNS_BYTES // MIB} MiB",
        f"one visitor (a login, or else an address) | {MAX_WHO_BYTES // MB} MB",
        f"the taught signs of all visitors | {MAX_BYTES // MB} MB",
        f"after their last use for | {PAGE.keep_minutes:g} minutes",
        f"Cameras can take {PAGE.max_live + SPARE_STREAMS} of its {PLACES} places",
        f"{security.PATIENCE_S:g} s in all; {security.MIN_BYTES_PER_S // 1000} kB per second",
        f"| {security.HEAD_TIMEOUT_S:g} s | |",
        f"{security.FREE_LOGINS}, then a wait from 1 s, doubled up to {security.MAX_LOGIN_WAIT_S:g} s",
        f"{PAGE.decode_timeout_s:g} s | `--decode-timeout`",
        f"{PAGE.at_once} | `--at-once`",
        f"{PAGE.queue_limit} | `--queue`",
        f"{PAGE.max_live} | `--max-live`",
        f"{MAX_PICTURE_BYTES // MB} MB and {MAX_PICTURE_PIXELS:,} pixels",
        f"{PRESETS['wlasl'].min_frames} to {PRESETS['wlasl'].max_frames} (`min_frames`, `max_frames`",
        f"{MAX_QUEUE_SIZE}, for up to {QUEUE_TIMEOUT_US // 10**6} s",
        f"{SERVICE.max_bytes // MIB} MiB, {SERVICE.max_frames:,}, 4096 x {SERVICE.max_pixels // 4096}",
        f"{SERVICE.max_decode_s} s, {SERVICE.max_memory_bytes // GIB} GiB, in a process of its own",
        f"videos at once | {SERVICE.requests_at_once} |",
        f"crops in total | {SERVICE.crops_at_once:,} |",
        f"at most {MAX_FILE_BYTES // GIB} GiB, the index of its tensors at most {MAX_INDEX_BYTES // MIB} MiB",
        f"a file of labels | {MAX_LABELS_BYTES // MIB} MiB",
        f"a file of accounts | {MAX_PRESET_BYTES // MB} MB each",
        f"a data set's split | {MAX_SPLIT_BYTES // MIB} MiB",
        f"{CHECK_TIMEOUT_S / 60:g} minutes",
        f"{MAX_MEMORY_BYTES // GIB} GiB, {DEFAULT_DECODE_TIMEOUT_S:g} s (`--decode-timeout`)",
        f"for up to {VIDEOS_PER_PROCESS}",
    ],
)
def test_document_states_the_limit(row: str) -> None:
    assert row in " ".join(DOCUMENT.read_text().split())
