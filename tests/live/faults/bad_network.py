"""A proxy between a client and a server that is slow, resets connections, or lets nothing through."""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

CHUNK_BYTES = 64 * 1024
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing a connection resets it


class BadNetwork:
    """Listens at `address` during a `with` block, and forwards connections to `target`.

    `delay_s` delays each 64 KiB. `cut` resets all connections. While `black_hole` is True, nothing is forwarded.
    Changing `target` affects new connections only.
    """

    def __init__(self, target: str, delay_s: float = 0.0) -> None:
        self.target, self.delay_s, self.black_hole = target, delay_s, False
        self.num_cut = 0
        self.address = ""
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None

    def cut(self) -> None:
        """Reset all connections."""
        self._run(self._cut())

    async def _cut(self) -> None:
        self.num_cut += len(self._open) // 2  # each connection has two writers
        for writer in self._open:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            writer.transport.abort()
        self._open.clear()

    async def _handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.rsplit(":", 1)
        try:
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, server_writer}
        await asyncio.gather(self._forward(reader, server_writer), self._forward(server_reader, writer))
        self._open -= {writer, server_writer}

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await asyncio.sleep(self.delay_s)
                while self.black_hole:
                    await asyncio.sleep(0.01)
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._handle_connection, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.black_hole = False
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def __enter__(self) -> "BadNetwork":
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *exception: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
