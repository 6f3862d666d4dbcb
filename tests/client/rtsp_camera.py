"""A password-protected RTSP camera (RFC 2326) that sends H.264 over RTP in the same TCP connection (RFC 6184)."""

import base64
import re
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio_ffmpeg

FRAME_RATE = 25
CLOCK_HZ = 90_000
IDR, SLICE = 5, 1  # NAL unit types that contain a picture
SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=0\r\na=control:track\r\n"
)


def pictures_of(path: Path) -> list[list[bytes]]:
    """Encode a video as H.264 and return the NAL units of each picture. Every picture is a keyframe."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path), "-c:v", "libx264"]
    command += [
        "-x264-params",
        "keyint=1:repeat-headers=1:sliced-threads=0",
        "-threads",
        "1",
        "-bsf:v",
        "h264_mp4toannexb",
    ]
    coded = subprocess.run([*command, "-f", "h264", "-"], check=True, capture_output=True).stdout
    pictures: list[list[bytes]] = [[]]
    for unit in re.split(rb"\x00\x00\x00?\x01", coded)[1:]:
        pictures[-1].append(unit)
        if unit[0] & 31 in (IDR, SLICE):
            pictures.append([])
    return pictures[:-1]


class RtspCamera:
    """Serves pictures in a loop to clients with the right user and password. Hangs up while `is_away` is set."""

    def __init__(self, pictures: list[list[bytes]], user: str, password: str) -> None:
        self.pictures = pictures
        self.secret = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.is_away = threading.Event()
        self.num_plays = 0
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        """The address as `host:port`."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator["RtspCamera"]:
        """Serve within the block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.is_away.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        camera = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while not camera.is_away.is_set() and (line := self.rfile.readline().decode()):
                    method = line.split()[0]
                    headers = {}
                    while header := self.rfile.readline().decode().strip():
                        name, _, value = header.partition(": ")
                        headers[name.lower()] = value
                    try:
                        self.answer(method, headers)
                    except (BrokenPipeError, ConnectionResetError):
                        return

            def answer(self, method: str, headers: dict[str, str]) -> None:
                start = f"CSeq: {headers['cseq']}\r\n"
                if method == "OPTIONS":
                    self.send(f"RTSP/1.0 200 OK\r\n{start}Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n")
                elif headers.get("authorization") != camera.secret:
                    self.send(f'RTSP/1.0 401 Unauthorized\r\n{start}WWW-Authenticate: Basic realm="camera"\r\n\r\n')
                elif method == "DESCRIBE":
                    headers_and_body = f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n\r\n{SDP}"
                    self.send(f"RTSP/1.0 200 OK\r\n{start}{headers_and_body}")
                elif method == "SETUP" and "TCP" not in headers["transport"]:
                    self.send(f"RTSP/1.0 461 Unsupported Transport\r\n{start}\r\n")
                elif method == "SETUP":
                    transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n\r\n"
                    self.send(f"RTSP/1.0 200 OK\r\n{start}{transport}")
                else:
                    self.send(f"RTSP/1.0 200 OK\r\n{start}Session: 1\r\n\r\n")
                    if method == "PLAY":
                        self.play()

            def play(self) -> None:
                camera.num_plays += 1
                sequence = number = 0
                while not camera.is_away.wait(1 / FRAME_RATE):
                    units = camera.pictures[number % len(camera.pictures)]
                    for unit in units:
                        marker = 0x80 if unit is units[-1] else 0
                        stamp = number * CLOCK_HZ // FRAME_RATE
                        packet = struct.pack("!BBHII", 0x80, 96 | marker, sequence & 0xFFFF, stamp, 1) + unit
                        self.wfile.write(struct.pack("!cBH", b"$", 0, len(packet)) + packet)
                        sequence += 1
                    number += 1

            def send(self, text: str) -> None:
                self.wfile.write(text.encode())

        return Handler
