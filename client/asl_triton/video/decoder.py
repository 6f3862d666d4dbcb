"""Decodes the packets of a container into frames. Frames that cannot be decoded are skipped and counted."""

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from asl_triton.errors import VideoError

MAX_READ_ERRORS = 1000  # in a row, before the rest of the file is given up
PREVIEW_SHARE = 4  # a stream whose pictures are this many times smaller than another's is a preview
# These decoders output frames before the first key frame, gray where the reference is missing. Others wait for it.
STARTS_GRAY = ("mpeg4", "msmpeg4v3", "msmpeg4v2", "msmpeg4v1", "h263", "flv", "wmv1", "wmv2", "mpeg1video", "svq3")
# With these codecs a packet is one frame, so a packet without a frame means a lost frame even without an error.
FRAME_PER_PACKET = ("h264", "hevc", "vp9", "libdav1d", "av1", "mjpeg", "mpeg2video")


class FrameDecoder:
    """Decodes the video stream of an open container. `num_lost` counts the frames that could not be decoded so far.

    A frame may have up to twice `max_pixels`, since decoders pad. Callers that need the exact limit check it again.
    """

    def __init__(self, container: InputContainer, name: str, max_pixels: int) -> None:
        """Choose the stream.

        Raises:
            VideoError: no stream can be decoded.
        """
        self.stream = choose_stream(container, name)
        self.is_interlaced = False
        self._container, self._name = container, name
        codec = self.stream.codec_context
        codec.thread_count = 1  # several videos are decoded in parallel
        codec.options = limit_pixels(max_pixels)
        self._codec = codec.name
        self._is_gray = self._codec in STARTS_GRAY
        self._packets = container.demux(self.stream)
        self._num_packets = self._num_hidden = self._num_failed = self._num_decoded = self._num_gray = 0

    def decode_next(self) -> list[av.VideoFrame] | None:
        """Decode the next packet and return its frames, possibly none. Returns None after the last packet.

        Raises:
            VideoError: the file cannot be read. MemoryError: there is not enough memory.
        """
        packet = self._read_packet()
        if packet is None:
            return None
        self._num_packets += packet.size > 0
        self._num_hidden += packet.is_discard
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.FFmpegError:
            self._num_failed += 1
            return []
        self._num_decoded += len(frames)
        while self._is_gray and frames:
            self._is_gray = not frames[0].key_frame
            if self._is_gray:
                self._num_gray += 1
                del frames[0]
        self.is_interlaced = self.is_interlaced or any(frame.interlaced_frame for frame in frames)
        return frames

    @property
    def num_lost(self) -> int:
        """The number of frames that could not be decoded. After the last packet, also those missing."""
        lost = self._num_failed
        if self._codec in FRAME_PER_PACKET and not self.is_interlaced:
            lost = max(lost, self._num_packets - self._num_hidden - self._num_decoded)
        # The index of an MP4 lists every packet; the indexes of other containers do not.
        indexed = len(self.stream.index_entries) if self._container.format.name.startswith("mov") else 0
        return lost + self._num_gray + max(indexed - self._num_packets, 0)

    def _read_packet(self) -> "Packet[VideoStream] | None":
        """Read the next packet of the file. Packets that cannot be read are skipped and counted."""
        for _ in range(MAX_READ_ERRORS):
            try:
                return next(self._packets, None)
            except av.error.InvalidDataError:
                self._num_packets += 1
                self._num_failed += 1
                self._packets = self._container.demux(self.stream)
            except av.FFmpegError:
                self._num_failed += 1
                return None
            except OSError as exc:
                raise VideoError(f"cannot read {self._name}: {exc.strerror}") from exc
        return None


def choose_stream(container: InputContainer, name: str) -> VideoStream:
    """Choose the video stream to read: the default one, but not cover art or a preview of a larger stream.

    Raises:
        VideoError: no stream can be decoded.
    """
    not_played = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & not_played]
    if not streams:
        raise VideoError(
            f"{name} cannot be read as a video: it is audio only, damaged, or in a codec that FFmpeg does not support. "
            "Copy, record or convert it again"
        )
    areas = {stream.index: stream.codec_context.width * stream.codec_context.height for stream in streams}
    large = [stream for stream in streams if PREVIEW_SHARE * areas[stream.index] >= max(areas.values())]
    return max(large, key=lambda stream: (bool(stream.disposition & Disposition.default), areas[stream.index]))


def limit_pixels(max_pixels: int) -> dict[str, str]:
    """Return FFmpeg's options that keep decoders from allocating much larger pictures."""
    return {"max_pixels": str(2 * max_pixels)}
