"""Packets of a container to decoded frames: what cannot be decoded is skipped and counted."""

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from asl_triton.errors import VideoError

MAX_READ_ERRORS = 1000  # in a row: then the rest is given up
PREVIEW_SHARE = 4  # a picture this many times smaller than another in the file is a preview
# These decoders output frames before the first key frame, gray where the reference is missing. Others wait for one.
STARTS_GRAY = ("mpeg4", "msmpeg4v3", "msmpeg4v2", "msmpeg4v1", "h263", "flv", "wmv1", "wmv2", "mpeg1video", "svq3")
# With these codecs a packet is one frame, so a packet without a frame is a loss even if no error is raised.
FRAME_PER_PACKET = ("h264", "hevc", "vp9", "libdav1d", "av1", "mjpeg", "mpeg2video")


class FrameDecoder:
    """Decodes the video stream of an open container. `num_lost` frames could not be decoded so far.

    A frame may have twice `max_pixels`, since decoders pad; callers that mean the exact number check it again.
    """

    def __init__(self, container: InputContainer, name: str, max_pixels: int) -> None:
        """Choose the stream.

        Raises:
            VideoError: there is none that can be decoded.
        """
        self.stream = choose_stream(container, name)
        self.is_interlaced = False
        self._container, self._name = container, name
        codec = self.stream.codec_context
        codec.thread_count = 1  # videos are decoded side by side
        codec.options = limit_pixels(max_pixels)
        self._codec = codec.name
        self._is_gray = self._codec in STARTS_GRAY
        self._packets = container.demux(self.stream)
        self._num_packets = self._num_hidden = self._num_failed = self._num_decoded = self._num_gray = 0

    def decode_next(self) -> list[av.VideoFrame] | None:
        """Read and decode the next packet: the frames that come of it, perhaps none; None after the last packet.

        Raises:
            VideoError: the file cannot be read. MemoryError: it takes more memory than there is.
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
        """How many frames could not be decoded; after the last packet, with those that are not in the file."""
        lost = self._num_failed
        if self._codec in FRAME_PER_PACKET and not self.is_interlaced:
            lost = max(lost, self._num_packets - self._num_hidden - self._num_decoded)
        # The index of an MP4 lists every packet; the indexes of other containers do not.
        indexed = len(self.stream.index_entries) if self._container.format.name.startswith("mov") else 0
        return lost + self._num_gray + max(indexed - self._num_packets, 0)

    def _read_packet(self) -> "Packet[VideoStream] | None":
        """The next packet of the file; packets that cannot be read are skipped and counted."""
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
    """The video stream to read: the default one, but neither cover art nor a preview beside a larger picture.

    Raises:
        VideoError: there is none that can be decoded.
    """
    not_played = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & not_played]
    if not streams:
        raise VideoError(
            f"{name} cannot be read as a video: it is audio only, damaged, or coded in a way that FFmpeg does not "
            "know. Copy, record or convert it again"
        )
    areas = {stream.index: stream.codec_context.width * stream.codec_context.height for stream in streams}
    large = [stream for stream in streams if PREVIEW_SHARE * areas[stream.index] >= max(areas.values())]
    return max(large, key=lambda stream: (bool(stream.disposition & Disposition.default), areas[stream.index]))


def limit_pixels(max_pixels: int) -> dict[str, str]:
    """FFmpeg's options that keep decoders from making much larger pictures."""
    return {"max_pixels": str(2 * max_pixels)}
