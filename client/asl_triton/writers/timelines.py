"""Writes timelines to files, one per video: tables, subtitles and ELAN."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asl_triton.extras import require_extra
from asl_triton.results import Segment, Timeline, box_to_json
from asl_triton.writers.tables import LineSink, format_csv_header, format_csv_rows

if TYPE_CHECKING:
    from pympi import Elan

COLUMNS = ("video", "gloss", "class_id", "start_s", "end_s", "confidence", "peak_s", "model")  # of a segment
GLOSSES, CONFIDENCES = "gloss", "confidence"  # the tiers of an ELAN file
# ELAN's names for them. ELAN inspects any other file itself.
MEDIA_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime"}
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def iter_segment_rows(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Yield a timeline as rows of `COLUMNS`, one per segment. Times are in whole milliseconds, as in all formats.

    A row also has `signer`, the box of its shot, if frames were cropped to one.
    """
    for segment in timeline.segments:
        start_ms, end_ms = to_milliseconds(segment)
        box = timeline.find_signer(segment.peak_s)
        yield {
            "video": timeline.video,
            "gloss": segment.gloss,
            "class_id": segment.class_id,
            "start_s": start_ms / 1000,
            "end_s": end_ms / 1000,
            "confidence": round(segment.confidence, 6),
            "peak_s": round(segment.peak_s, 3),
            "model": timeline.model,
            **({} if box is None else {"signer": box_to_json(box)}),
        }


def to_milliseconds(segment: Segment) -> tuple[int, int]:
    """Return a segment's start and end in milliseconds, at least 1 apart."""
    start_ms, end_ms = round(segment.start_s * 1000), round(segment.end_s * 1000)
    return start_ms, max(end_ms, start_ms + 1)


class TimelineSink(LineSink[Timeline]):
    """The file of one timeline. `media` is the video, for formats that link to it."""

    def __init__(self, path: Path, media: Path | None = None, *, raw: bool = False) -> None:
        super().__init__(path, raw=raw)
        self.media = media


class CsvTimelineSink(TimelineSink):
    """One row per segment."""

    header = format_csv_header(COLUMNS)

    def format(self, timeline: Timeline) -> str:
        """Format the rows."""
        return format_csv_rows(COLUMNS, iter_segment_rows(timeline), raw=self.raw)


class JsonLinesTimelineSink(TimelineSink):
    """One line per segment, with the columns of the CSV and, if one was used, the signer's box.

    The files of several videos can be concatenated.
    """

    def format(self, timeline: Timeline) -> str:
        """Format the lines."""
        return "".join(json.dumps(row) + "\n" for row in iter_segment_rows(timeline))


class WebVttSink(TimelineSink):
    """One cue per segment: subtitles for players and browsers (https://www.w3.org/TR/webvtt1/)."""

    def format(self, timeline: Timeline) -> str:
        """Format the whole file."""
        return format_webvtt(timeline.segments, f"{timeline.model}: {timeline.video}")


class EafSink(TimelineSink):
    """ELAN's annotation format 3.0, with a tier of glosses and a dependent tier of confidences."""

    header = '<?xml version="1.0" encoding="UTF-8"?>\n'

    def format(self, timeline: Timeline) -> str:
        """Format the document."""
        with require_extra("elan"):
            from pympi import Elan
        document = Elan.Eaf(author="asl-triton")
        document.adocument |= {
            "DATE": datetime.now(timezone.utc).isoformat(
                timespec="seconds"
            ),  # pympi's default is invalid in half-hour time zones
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        }
        document.header["TIME_UNITS"] = "milliseconds"
        document.properties = [("asl_triton.model", strip_invalid_xml(timeline.model))]
        if self.media is not None:
            self._link(document, self.media)
        document.remove_tier("default")
        document.add_linguistic_type("of-gloss", "Symbolic_Association", timealignable=False)
        document.add_tier(GLOSSES)
        document.add_tier(CONFIDENCES, "of-gloss", parent=GLOSSES)
        for segment in timeline.segments:
            start_ms, end_ms = to_milliseconds(segment)
            document.add_annotation(GLOSSES, start_ms, end_ms, strip_invalid_xml(segment.gloss))
            middle_ms = (start_ms + end_ms) // 2
            document.add_ref_annotation(CONFIDENCES, GLOSSES, middle_ms, f"{segment.confidence:.4f}")
        return str(Elan.to_string(document)) + "\n"

    def _link(self, document: "Elan.Eaf", media: Path) -> None:
        """Link to the video by its relative path, so that both can be moved together. ELAN's URLs have no escapes."""
        video, here = media.resolve(), self.path.parent.resolve()
        absolute = strip_invalid_xml(video.as_posix())
        try:
            relative: str | None = strip_invalid_xml(Path(os.path.relpath(video, here)).as_posix())
        except ValueError:  # on another drive of Windows
            relative = None
        media_type = MEDIA_TYPES.get(media.suffix.lower(), "unknown")
        document.add_linked_file(f"file:///{absolute.lstrip('/')}", relative, media_type)


def format_webvtt(segments: Sequence[Segment], note: str) -> str:
    """Format segments, in order of their start, as WebVTT with a comment at the top."""
    blocks = ["WEBVTT", f"NOTE {escape_cue(note)}"]
    for number, segment in enumerate(segments, start=1):
        start, end = map(format_timestamp, to_milliseconds(segment))
        blocks.append(f"{number}\n{start} --> {end}\n{escape_cue(segment.gloss)}")
    return "\n\n".join(blocks) + "\n"


def format_timestamp(time_ms: int) -> str:
    """Format milliseconds for WebVTT: `00:01:02.345`."""
    seconds, milli = divmod(time_ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milli:03}"


def escape_cue(text: str) -> str:
    """Put a cue's text on one line and escape markup."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def strip_invalid_xml(text: str) -> str:
    """Replace characters that are invalid in XML."""
    return NOT_IN_XML.sub("\ufffd", text)


TIMELINES: dict[str, type[TimelineSink]] = {
    "csv": CsvTimelineSink,
    "jsonl": JsonLinesTimelineSink,
    "vtt": WebVttSink,
    "eaf": EafSink,
}
